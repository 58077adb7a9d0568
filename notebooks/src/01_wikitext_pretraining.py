# %% [markdown]
# # New-LLM 1 · Pretraining, and the comparison with attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/01_wikitext_pretraining.ipynb)
#
# A transformer looks back at every earlier token each time it predicts the next one, so its memory grows with the text.
# **New-LLM has no attention**: each layer carries one *context vector* of fixed size from token to token. *Gates* are
# numbers between 0 and 1: they decide how much of the vector is kept and how much is replaced. They are computed from the
# tokens just read, never from the vector itself. So all tokens of a text can be trained on at once, and yet the model
# writes a text of any length in constant memory.
#
# This notebook trains New-LLM and **TinyGPT2**, an attention model with the same number of parameters, on the same
# tokens, and then asks which one predicts unseen text better. Choose *Runtime → Change runtime type → GPU* (a free T4
# is enough), then *Runtime → Run all*.
#
# *日本語: 注意機構を持たない New-LLM と、パラメータ数が同じ TinyGPT2 を同じデータで学習し、比べるノートブックです。New-LLM は、
# 過去のトークンを見返す代わりに、大きさの決まった「文脈ベクトル」を持ち運びます。何を残し、何を書き換えるかは「ゲート」（0 から
# 1 の数）が決めます。ゲートは直前のトークンだけから計算されるので、文章全体を一度に学習できます。「ランタイム」→「ランタイムのタイプを変更」で
# GPU を選び（無料の T4 で十分です）、「すべてのセルを実行」してください。*

# %% [markdown]
# ## Bits per byte, the figure to watch
#
# A language model gives each next token a probability. If it gives the right one probability ½, it needs 1 bit to say
# which it was; at ¼, 2 bits; at 1/1024, 10 bits. Add up the bits for a text and divide by its size in bytes: **bits per
# byte**, the size of the text if the model were used to compress it. 8 means nothing learnt; `gzip` gets about 3 on
# English; lower is better.
#
# *Perplexity*, the usual figure, counts per token and so depends on the vocabulary: a model with only 1,000 words can
# boast a perplexity of 20 by calling every third word `<unk>`, "unknown". Bits per byte cannot be fooled: each byte of
# a word that was lost is counted in full. As a yardstick we also print two models that only count: **unigram** (how frequent
# is each token) and **bigram** (which token follows which). A *token* is what the model reads in one step: a word, or a
# piece of one.
#
# *日本語: 見るべき数値は bits per byte です。文章の 1 バイトを言い当てるのに何ビット必要かを表し、小さいほど良い値です（8 は何も
# 学習していない状態、gzip は英語で約 3）。パープレキシティ（perplexity）と違って語彙によらず、`<unk>` でごまかせません。基準として、
# トークンの頻度だけを使う unigram と、直前のトークンだけを使う bigram の値も表示します。トークンは、モデルが一度に読む単位（単語か
# その一部）です。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds what this machine lacks; torch and numpy stay as they are. Inside an installed clone there
# is nothing to do.
#
# *日本語: プロジェクトを取得し、足りないものだけを入れます（torch と numpy は変えません）。*

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# | *Data* | what it is |
# |---|---|
# | `tinystories` | short stories in a small child's words: a small model learns to write whole sentences from them |
# | `demo` | 7,168 human conversations, from a package: needs no network beyond pip's, minutes without a GPU |
# | `wikitext` | Wikipedia articles: the guide's job, up to 100 epochs, stopped when it stops improving |
# | *Your own text* | a folder with `train.txt`; it replaces the data above |
#
# What to expect of `tinystories`: with 10 to 25 million parameters, models wrote consistent stories of several
# paragraphs after days of training ([Eldan and Li, 2023](https://arxiv.org/abs/2305.07759)); the recipe here is sized for
# twenty minutes on a T4, not measured on one yet, so expect whole sentences and stories that wander.
#
# *日本語: 小さなモデルでも文が書けるようになる `tinystories`、Hugging Face Hub につながらなくても使える `demo`、旧ガイドの
# `wikitext`、または自分の文章（`train.txt` の入ったフォルダー）を選べます。空欄はレシピの値になり、下に表示されます。`tinystories`
# は T4 で 20 分ほどの設定です（T4 での実測はまだありません）。文にはなりますが、話の筋はそれることがあります。*

# %%
#@build form PRETRAINING

# %% [markdown]
# ## 3 · This machine
#
# One probe decides number format, kernels and compilation, and says why; then an estimate of memory and time for these
# settings.
#
# *日本語: このマシンで使うものとその理由、必要なメモリと時間の見積もりです。*

# %%
from newllm_lib.colab.report import machine

machine(settings);

# %% [markdown]
# ### See the data
#
# Three records as the model will read them, with its tokens for turns and ends; what the loss counts is marked. Below,
# how long the documents are beside a training block. The first time, this reads the data: what training would do anyway.
#
# *日本語: モデルが読む形のデータを 3 件示します。色の付いた部分が損失の計算に使われます。下の図は文書の長さと学習ブロックの
# 長さです。最初はデータを読み込むので、時間がかかることがあります。*

# %%
#@build cell data

# %% [markdown]
# ### See the model
#
# Nothing is hidden: these lines make a New-LLM of a toy's size and take one step of training by hand. Each block holds
# a *context vector* (`context`) and an MLP for each token; the picture shows where the parameters are. **Exercise**: set
# `context_dim` to 16 here and look at the number of parameters. Then train with `context_dim=16` (`train(settings,
# context_dim=16)`): what happens to bits per byte?
#
# *日本語: 小さな New-LLM を作り、学習を 1 ステップだけ手で行います。図はパラメータの内訳です。練習: `context_dim` を 16 に
# して、パラメータ数がどう変わるかを見てください。次に `train(settings, context_dim=16)` で学習すると、bits per byte は
# どうなるでしょうか。*

# %%
#@build cell model

# %% [markdown]
# ## 4 · Train New-LLM
#
# Training runs in a process of its own: it goes on if you close this tab. The cell ends at once, and its picture goes
# on by itself: left the loss of each step, right the bits per byte on the *validation text*, which is never trained on;
# ✓ marks the best evaluation, whose model is kept. **Stop** saves first, **Save** writes a checkpoint and trains on. Run the cell again to look
# again (after the tab was closed, say), or to continue a run that was stopped.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。セルはすぐに終わり、表示は自動で更新されます。左は学習の損失、右は
# 検証用の文章での bits per byte で、✓ が最良の評価です。停止ボタンは保存してから止め、保存ボタンは保存して学習を続けます。
# セルを再実行すると、表示し直すか、続きから再開します。*

# %%
from newllm_lib.colab.background import train

new_llm = train(settings)

# %% [markdown]
# The next model is trained when this one is done: this cell waits for it. ■ ends the waiting, not the training: then section 7 talks with the
# best model so far.
#
# *日本語: 学習が終わるまで待ちます。■ を押すと待つのをやめるだけで、学習は続きます。その時点で最良のモデルと 7 で会話できます。*

# %%
from newllm_lib.colab.background import wait

wait(new_llm)

# %% [markdown]
# ## 5 · Train TinyGPT2
#
# GPT-2's architecture, as wide as it takes to have New-LLM's number of parameters (within 2 %); the same tokenizer, the
# same blocks of text in the same order.
#
# *日本語: パラメータ数が同じ（差は 2 % 以内の）GPT-2 を、同じトークナイザー、同じデータ、同じ順序で学習します。*

# %%
from newllm_lib.colab.background import train

tiny_gpt2 = train(settings, model="tiny_gpt2")

# %% [markdown]
# And again:
#
# *日本語: こちらも終わるまで待ちます。*

# %%
from newllm_lib.colab.background import wait

wait(tiny_gpt2)

# %% [markdown]
# Both runs in one picture:
#
# *日本語: 二つの学習を 1 枚の図で比べます。*

# %%
from newllm_lib.colab.live import watch

watch(new_llm, tiny_gpt2);

# %% [markdown]
# ## 6 · Read the result
#
# What New-LLM's figures mean, what to change, and what it made of the same beginnings as it learned:
#
# *日本語: 数値の意味、変えるとよい設定、学習中に同じ書き出しから書いた文です。*

# %%
from newllm_lib.colab.results import read

read(new_llm)

# %% [markdown]
# Now both on the **test** split, which neither training nor the choice of the best model has seen: prediction, speed and
# memory, and the same beginnings continued. The difference is New-LLM's, in % of TinyGPT2's.
#
# *日本語: 学習にも最良のモデルの選択にも使っていないテスト用の文章で、予測、速度、メモリを比べます。差は TinyGPT2 に対する
# New-LLM の割合（%）です。*

# %%
from newllm_lib.colab.results import compare

comparison = compare(new_llm, tiny_gpt2)

# %% [markdown]
# **How to read it.** Below the unigram table: the model has learnt which words are frequent. Below the bigram table: it
# uses more than the last token, which is where language begins. If a model is still above the bigram table, train
# longer (*Epochs*) or larger (*Size*); if validation rises while training falls, it learns by heart: more text helps.
#
# *日本語: unigram より小さければ、どのトークンがよく出るかを学習しています。bigram より小さければ、直前のトークンより前も使って
# います。まだ bigram より大きいなら、エポック数を増やすか、モデルを大きくしてください。学習の損失が下がるのに検証の値が上がるのは
# 過学習で、データを増やすと改善します。*

# %% [markdown]
# ### See what they do
#
# A text coloured by **surprise**: the deeper a token's colour, the more bits it cost the model. Their sum, divided by
# the text's bytes, *is* bits per byte. Point at a token to see its bits; try a text of your own.
#
# *日本語: 予測しにくいトークンほど濃い色です。合計を文章のバイト数で割ったものが bits per byte です。トークンを指すとビット数が
# 出ます。自分の文章でも試してください。*

# %%
from newllm_lib.colab.explain import show_surprise

text = "Hi! How are you today? I work as a teacher in a small town, and I love my dogs. What about you?"
show_surprise(text, new_llm, tiny_gpt2);

# %% [markdown]
# New-LLM's **context vector** while it reads: at each token, gates decide how much of each channel is replaced by
# something new (a *channel* is one number of the vector). The channels at the top are kept for hundreds of tokens, those
# at the bottom for one.
#
# *日本語: 文章を読むときの文脈ベクトルです。ゲートは、各チャンネル（ベクトルの 1 つの数）をどれだけ新しい内容に置き換えるかを決めます。上のチャンネルほど
# 長く覚えています。*

# %%
from newllm_lib.colab.explain import show_gates

show_gates(text, new_llm);

# %% [markdown]
# **What is remembered**: a name is given, other things are said, then the name is asked for. TinyGPT2 sees nothing
# beyond its window; New-LLM's context vector has no such limit, but it keeps only what it has learned to keep. At height
# 1 the name is no likelier than any other: it is forgotten. Small models trained for minutes forget soon, and that is
# shown as it is.
#
# *日本語: 名前を伝え、別の話をしてから名前を尋ねて、覚えているかを調べます。縦軸が 1 なら、ほかの名前と同じ確率、つまり忘れて
# います。TinyGPT2 は窓より前を見られません。数分の学習では、小さなモデルは
# すぐに忘れます。*

# %%
from newllm_lib.colab.explain import show_recall

show_recall(new_llm, tiny_gpt2);

# %% [markdown]
# ## 7 · Talk with it
#
# What was said is kept in the context vector, so no token is read twice, however long the conversation becomes. A model
# trained on Wikipedia or on stories continues your text; one trained on `demo` answers in turns. Small models babble: it
# is the figures above that say what was learnt. Open *The next token's probabilities* under the chat: you see what each
# token was drawn from. A *temperature* below 1 makes likely tokens likelier still; *top-p* 0.9 draws only from the
# likeliest tokens that make up 90 %.
#
# *日本語: 会話の内容は文脈ベクトルに保たれるので、どれだけ長く話しても同じトークンを読み直しません。チャットの下の「次のトークンの
# 確率」を開くと、どの候補から選ばれたかが見えます。temperature を下げると出やすいトークンがさらに出やすくなり、top-p を 0.9 に
# すると上位 90 % の候補だけから選びます。最初のプロンプト（書き出し）は下のセルの `first` です。*

# %%
from newllm_lib.colab.chat_widget import chat

first = {"demo": "Hello! How are you today?", "tinystories": "Once upon a time"}.get(settings.name, "The city was")
conversation = chat(new_llm, first=first)

# %% [markdown]
# ## 8 · Keep it, give it away, go on
#
# To Google Drive, if the form says so, with all that is needed to continue; one file to download, whose folder `best`
# loads with `AutoModelForCausalLM.from_pretrained` after `import newllm_lib.models`; and how to give the model away.
#
# *日本語: フォームで選んであれば、学習を再開できる形で Google ドライブに保存します。続いて、ダウンロード用のファイル、モデルの
# 公開のしかた、次のステップを表示します。*

# %%
from newllm_lib.colab.results import keep

keep(settings, new_llm, tiny_gpt2)

# %% [markdown]
# ## Next
#
# - **Another session**, or Colab took the machine away: run all cells again. A run that is on Drive is brought back and
#   continued at its last save, with the same curve as if nothing had happened.
# - **Larger or longer**: change *Size* or *Epochs* above and run again; every choice that changes the model gets a run
#   of its own.
# - **The old figures**: `protocol = seed` trains with the original's 1,000 words and its metric; the table then shows
#   what a perplexity of 20 meant in bits per byte.
# - **Your own text**: put `train.txt` into a folder and name it in the form; `newllm data check FOLDER` says what it is taken for.
# - **The command line** does the same: the line under the form, `newllm compare`, `newllm chat`. See
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
#
# *日本語: 新しいセッションでは、すべてのセルをもう一度実行してください。ドライブにある run は、最後の保存から同じ曲線で続きます。
# 大きさやエポック数を変えると、別の run になります。`protocol` を `seed` にすると、旧版の 1,000 語の語彙と指標で学習します。自分の
# 文章は `train.txt` としてフォルダーに入れ、フォームで指定します。コマンドでも同じことができます：
# [README_COLAB.ja.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.ja.md)。*
