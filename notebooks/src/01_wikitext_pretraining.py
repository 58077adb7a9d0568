# %% [markdown]
# # New-LLM 1 · Pretraining, and the comparison with attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/01_wikitext_pretraining.ipynb)
#
# A language model reads a text *token* by token (a token is a word, or a piece of one) and predicts the next token. A
# *transformer* looks back at every earlier token each time it predicts. This looking back is called *attention*, and its
# memory grows with the text. **New-LLM has no attention**: each layer carries one *context vector* of fixed size from
# token to token. *Gates* are numbers between 0 and 1: they decide how much of the vector is kept and how much is
# replaced. They are computed from the tokens just read, never from the vector itself. So all tokens of a text can be
# trained on at once, and yet the model writes a text of any length in constant memory.
#
# This notebook trains New-LLM and **TinyGPT2**, an attention model with the same number of parameters, on the same
# tokens, and then asks which one predicts unseen text better. Choose *Runtime → Change runtime type → GPU* (a free T4
# is enough), then *Runtime → Run all*.
#
# *日本語: 注意機構を持たない New-LLM と、パラメータ数が同じ TinyGPT2 を同じデータで学習し、比べるノートブックです。New-LLM は、
# 過去のトークン（単語か、その一部）を見返す代わりに、大きさの決まった「文脈ベクトル」を持ち運びます。何を残し、何を書き換えるかは
# 「ゲート」（0 から 1 の数）が決めます。ゲートは読んだばかりのトークンだけから計算され、文脈ベクトルにはよりません。そのため文章全体を
# 一度に学習でき、どんなに長い文章も一定のメモリで書けます。「ランタイム」→「ランタイムのタイプを変更」で GPU を選び（無料の T4 で
# 十分です）、「すべてのセルを実行」してください。*

# %% [markdown]
# ## Bits per byte, the figure to watch
#
# A language model gives each next token a probability. If it gives the right one probability ½, it needs 1 bit to say
# which it was; at ¼, 2 bits; at 1/1024, 10 bits. Add up the bits for a text and divide by its size in bytes: **bits per
# byte**, the size of the text if the model were used to compress it. Lower is better. A model that knows nothing needs 8;
# the compression program `gzip` needs about 3 on English.
#
# *Perplexity*, the usual figure, counts per token, so it depends on the *vocabulary*, the list of all tokens that the model
# knows: a model with only 1,000 words can boast a perplexity of 20 by calling every third word `<unk>`, "unknown". Bits
# per byte cannot be fooled: each byte of a word that was lost counts 8 bits. As a yardstick we also print two models that
# only count: **unigram** (how frequent is each token) and **bigram** (which token follows which).
#
# *日本語: 見るべき数値は bits per byte です。正しい次のトークンに確率 ½ を与えていれば 1 ビット、¼ なら 2 ビットかかると数え、その合計を
# 文章のバイト数で割ります。小さいほど良い値です（何も知らないモデルは 8、圧縮プログラムの gzip は英語で約 3）。パープレキシティ
# （perplexity）は語彙（モデルが知っているトークンの一覧）によって変わり、`<unk>` でごまかせますが、bits per byte ではごまかせません。基準として、
# トークンの頻度だけを使う unigram と、直前のトークンだけを使う bigram の値も表示します。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds the packages that this machine lacks; torch and numpy stay as they are. If the project is
# installed already, there is nothing to do.
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
# | `demo` | 7,168 conversations between people: small, comes with the installation, a few minutes even without a GPU |
# | `wikitext` | Wikipedia articles, as in this project's first guide: up to 100 epochs (passes over the text), fewer if it stops improving |
# | *Your own text* | a folder with a file `train.txt`; it replaces the data above |
#
# What to expect of `tinystories`: with 10 to 25 million parameters, models wrote consistent stories of several
# paragraphs after days of training ([Eldan and Li, 2023](https://arxiv.org/abs/2305.07759)); the recipe here is sized for
# twenty minutes on a T4, not measured on one yet, so expect whole sentences and stories that wander.
#
# *日本語: 小さなモデルでも文が書けるようになる `tinystories`、Hugging Face Hub につながらなくても使える `demo`、旧ガイドの
# `wikitext`（最大 100 エポック。改善が止まれば早く終わります）、または自分の文章（`train.txt` の入ったフォルダー）を選べます。空欄はレシピの値になり、
# 下に表示されます。`tinystories` は T4 で 20 分ほどの設定です（T4 での実測はまだありません）。文にはなりますが、話の筋はそれることがあります。*

# %%
#@build form PRETRAINING

# %% [markdown]
# ## 3 · This machine
#
# The next cell looks at this machine and says how it will compute here, and why: in which number format, with which GPU
# programs (*kernels*), compiled or not. Then it estimates memory and time for these settings.
#
# *日本語: このマシンで使うもの（数値の形式、GPU 用のプログラム、コンパイルの有無）とその理由、必要なメモリと時間の見積もりです。*

# %%
from newllm_lib.colab.report import machine

machine(settings);

# %% [markdown]
# ### See the data
#
# Three records as the model will read them, with the special tokens that mark a speaker's turn and a text's end. What the
# *loss* counts, that is, what the model is taught to predict, has a colour. Below: how long the documents are, compared
# with a *training block*, the tokens that are read in one piece. The first time this takes a while, for the data are
# read; training would do it anyway.
#
# *日本語: モデルが読む形のデータを 3 件示します。発言や文章の終わりを表す特別なトークンも見えます。色の付いた部分が損失の計算に
# 使われ、モデルはそこを予測するように学習します。下の図は、文書の長さと、一度に読む学習ブロックの長さです。最初はデータを
# 読み込むので、時間がかかることがあります（学習でも必要な処理です）。*

# %%
#@build cell data

# %% [markdown]
# ### See the model
#
# Nothing is hidden: these lines make a very small New-LLM and take one step of training by hand. Each block holds a
# *context vector* (`context`) and a small network that treats each token by itself (`mlp`). The picture shows where the
# *parameters* are, the numbers that training changes. **Exercise**: set `context_dim` to 16 here and look at the number of
# parameters. Then train with `context_dim=16` (write `train(settings, context_dim=16)` below): what happens to bits per byte?
#
# *日本語: 小さな New-LLM を作り、学習を 1 ステップだけ手で行います。各ブロックには、文脈ベクトル（`context`）と、トークンごとに働く
# 小さなネットワーク（`mlp`）があります。図はパラメータ（学習で変わる数）の内訳です。練習: `context_dim` を 16 にして、パラメータ数が
# どう変わるかを見てください。次に下のセルで `train(settings, context_dim=16)` として学習すると、bits per byte はどうなるでしょうか。*

# %%
#@build cell model

# %% [markdown]
# ## 4 · Train New-LLM
#
# Training runs in a process of its own: it goes on if you close this tab. The cell ends at once, and its picture goes
# on by itself. Left: the loss of each step, the model's mean surprise at a token (in *nats*; 1 nat is 1.44 bits). Right: bits per
# byte on the *validation text*, which is never trained on; ✓ marks the best evaluation, whose model is kept. **Stop** saves
# first, **Save** saves and trains on. Run the cell again to see the picture again (after the tab was closed, say), or to
# continue a run that was stopped.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。セルはすぐに終わり、表示は自動で更新されます。左は各ステップの損失（トークン
# あたりの予測の外れ具合。単位は nat で、1 nat は 1.44 ビット）、右は学習に使わない検証用の文章での bits per byte で、✓ が最良の評価です（そのモデルが残ります）。停止ボタンは保存してから止め、保存ボタンは保存して学習を続けます。
# セルを再実行すると、表示し直すか、続きから再開します。*

# %%
from newllm_lib.colab.background import train

new_llm = train(settings)

# %% [markdown]
# The next model is trained when this one is done: this cell waits for it. ■ (stop the cell) ends the waiting, not the
# training: then you can talk with the best model so far in section 7.
#
# *日本語: 学習が終わるまで待ちます。■（セルの停止）を押すと待つのをやめるだけで、学習は続きます。その時点で最良のモデルと 7 で会話できます。*

# %%
from newllm_lib.colab.background import wait

wait(new_llm)

# %% [markdown]
# ## 5 · Train TinyGPT2
#
# GPT-2's architecture, made as wide as it must be to have New-LLM's number of parameters (within 2 %). It gets the same
# *tokenizer* (the program that cuts text into tokens) and the same blocks of text in the same order.
#
# *日本語: パラメータ数が同じ（差は 2 % 以内の）GPT-2 を、同じトークナイザー（文章をトークンに切り分けるもの）、同じデータ、同じ順序で学習します。*

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
# What New-LLM's figures mean, what to change, and how it continued the same beginnings while it learned:
#
# *日本語: 数値の意味、変えるとよい設定、学習中に同じ書き出しから書いた文です。*

# %%
from newllm_lib.colab.results import read

read(new_llm)

# %% [markdown]
# Now both models on the **test** text, which was used neither for training nor for choosing the best model: prediction,
# speed and memory, and the same beginnings continued. A difference of -3 % means that New-LLM's figure is 3 % lower than
# TinyGPT2's.
#
# *日本語: 学習にも最良のモデルの選択にも使っていないテスト用の文章で、予測、速度、メモリ、同じ書き出しの続きを比べます。差が -3 % なら、
# New-LLM の数値が TinyGPT2 より 3 % 小さいという意味です。*

# %%
from newllm_lib.colab.results import compare

comparison = compare(new_llm, tiny_gpt2)

# %% [markdown]
# **How to read it.** Below the unigram table: the model has learnt which words are frequent. Below the bigram table: it
# uses more than the last token, which is where language begins. If a model is still above the bigram table, train
# longer (*Epochs*) or a larger model (*Size of both models*). If validation rises while training falls, the model learns
# by heart (*overfitting*): more text helps.
#
# *日本語: unigram より小さければ、どのトークンがよく出るかを学習しています。bigram より小さければ、直前のトークンより前も使って
# います。まだ bigram より大きいなら、エポック数を増やすか、モデルを大きくしてください。学習の損失が下がるのに検証の値が上がるのは
# 過学習で、データを増やすと改善します。*

# %% [markdown]
# ### See what they do
#
# A text coloured by **surprise**: the deeper a token's colour, the more bits it cost the model. The sum of the bits, divided
# by the text's bytes, *is* bits per byte. Point at a token with the mouse to see its bits; try a text of your own.
#
# *日本語: 予測しにくいトークンほど濃い色です。合計を文章のバイト数で割ったものが bits per byte です。トークンを指すとビット数が
# 出ます。自分の文章でも試してください。*

# %%
from newllm_lib.colab.explain import show_surprise

text = "Hi! How are you today? I work as a teacher in a small town, and I love my dogs. What about you?"
show_surprise(text, new_llm, tiny_gpt2);

# %% [markdown]
# New-LLM's **context vector** while it reads. A *channel* is one number of the vector. At each token, gates decide how much
# of each channel is replaced by something new (orange) and how much is kept (blank). The channels are sorted: those at
# the top remember longest, and the numbers at the left say for how many tokens. At which tokens is most replaced? That is
# learned, not given, and differs from model to model.
#
# *日本語: 文章を読むときの文脈ベクトルです。ゲートは、各チャンネル（ベクトルの 1 つの数）をどれだけ新しい内容に置き換えるか（オレンジ）、
# どれだけ残すか（無色）を決めます。上のチャンネルほど長く覚えていて、左の数は覚えている長さ（トークン数）です。どのトークンで大きく
# 置き換えるかは、学習で決まり、モデルによって違います。*

# %%
from newllm_lib.colab.explain import show_gates

show_gates(text, new_llm);

# %% [markdown]
# **What is remembered**: a name is given, other things are said, then the name is asked for. TinyGPT2 sees nothing
# beyond its *window*, the number of tokens that it can read at once. New-LLM's context vector has no such limit, but it
# keeps only what it has learned to keep. At height 1 the name is no likelier than any other: it is forgotten. Small models
# trained for minutes forget soon, and that is shown as it is.
#
# *日本語: 名前を伝え、別の話をしてから名前を尋ねて、覚えているかを調べます。縦軸が 1 なら、ほかの名前と同じ確率、つまり忘れて
# います。TinyGPT2 は窓（一度に読めるトークン数）より前を見られません。New-LLM の文脈ベクトルにこの限界はありませんが、残すのは、残すように
# 学習したものだけです。数分の学習では、小さなモデルはすぐに忘れます。*

# %%
from newllm_lib.colab.explain import show_recall

show_recall(new_llm, tiny_gpt2);

# %% [markdown]
# ## 7 · Talk with it
#
# What was said is kept in the context vector, so no token is read twice, however long the conversation becomes. A model
# trained on Wikipedia or on stories continues your text; one trained on `demo` answers in turns. Small models babble: the
# figures above say what was learnt. Open *The next token's probabilities* under the chat: you see what each
# token was drawn from. A *temperature* below 1 makes likely tokens likelier still; *top-p* 0.9 draws only from the
# likeliest tokens that make up 90 %.
#
# *日本語: 会話の内容は文脈ベクトルに保たれるので、どれだけ長く話しても同じトークンを読み直しません。Wikipedia や物語で学習したモデルは
# 文章の続きを書き、`demo` で学習したモデルは会話の形で答えます。小さなモデルの文は意味が通らないことも多く、学習の成果は上の数値で
# 見ます。チャットの下の「次のトークンの
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
# - **Another session**, or Colab took the machine away: run all cells again. A *run* (a training and its folder) that is on
#   Drive is brought back and continued at its last save, with the same curve as if nothing had happened.
# - **Larger or longer**: change *Size of both models* or *Epochs* above and run again; every choice that changes the model
#   gets a run of its own.
# - **The old figures**: *Protocol* `seed` trains with the 1,000 words and the metric of this project's first version; the
#   table then shows what a perplexity of 20 meant in bits per byte.
# - **Your own text**: put `train.txt` into a folder and name it in the form; `newllm data check FOLDER` says what it is taken for.
# - **The command line** does the same: the line under the form, `newllm compare`, `newllm chat`. See
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
#
# *日本語: 新しいセッションでは、すべてのセルをもう一度実行してください。ドライブにある run（1 回の学習とそのフォルダー）は、最後の保存から
# 同じ曲線で続きます。大きさやエポック数を変えると、別の run になります。プロトコルを `seed` にすると、旧版の 1,000 語の語彙と指標で学習し、
# パープレキシティ 20 が bits per byte ではいくつかを表示します。自分の文章は `train.txt` としてフォルダーに入れ、フォームで指定します
# （`newllm data check フォルダー` で、何として読まれるかを確かめられます）。コマンドでも同じことができます：
# [README_COLAB.ja.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.ja.md)。*
