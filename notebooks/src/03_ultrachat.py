# %% [markdown]
# # New-LLM 3 · UltraChat
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/03_ultrachat.ipynb)
#
# 1.5 million dialogues of several turns about everything. They are read whole, with their turns and speakers, in blocks of
# 128 tokens (a token is a word, or a piece of one): each block goes on where the one before it stopped. The full set
# *streams*: it is prepared while it trains, so training begins within a minute or two, and memory does not grow.
#
# Choose *Runtime → Change runtime type → GPU* (a free T4 is enough), then *Runtime → Run all*.
#
# *日本語: 150 万件の複数ターンの対話で学習します。対話は途中で切らずに、128 トークンずつ続けて読みます。全件を使う場合は、学習しながら準備する（ストリーミング）ので、学習は 1〜2 分で
# 始まり、メモリも増えません。
# 「ランタイム」→「ランタイムのタイプを変更」で GPU を選び、「すべてのセルを実行」してください。まずは `100k`（10 万件）がおすすめです。*

# %% [markdown]
# ## How much of it
#
# | *Dialogues* | what happens |
# |---|---|
# | `10k` | a test of everything, a few passes |
# | `100k` | the recommended start: four passes |
# | `all` | one pass over all 1.5 million; the cell *This machine* estimates the hours |
#
# This project's first guide made fifty passes over the first 128 words of each dialogue; four passes over whole dialogues
# are about as many tokens.
#
# *日本語: `10k` は動作確認用、`100k` が最初のおすすめ（4 周）、`all` は全件を 1 周します。かかる時間は「This machine」のセルが
# 見積もります。旧ガイドは各対話の最初の 128 語だけを 50 周していました。対話を丸ごと 4 周すると、ほぼ同じ量になります。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds the packages that this machine lacks; torch and numpy stay as they are.
#
# *日本語: プロジェクトを取得し、足りないものだけを入れます（torch と numpy は変えません）。*

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# `ultrachat_200k` is a part of the set: its better dialogues. *Start from* left empty trains a **new New-LLM**; the name of a
# **run** of notebook 1 or 2 goes on with that model; a **model of the Hugging Face hub** (`owner/name`) is taught these
# dialogues by small matrices beside its weights (*LoRA adapters*), in one pass. Three that fit a T4 are proposed: two know
# English, `sarashina2.2` knows Japanese. With 4 bits, its weights take a quarter of the memory. *System prompt* is what the
# chat of section 7 tells the model before your first turn.
#
# *日本語: `ultrachat_200k` は選別された一部です。「何から始めるか」（Start from）が空欄なら新しい New-LLM を学習し、ノートブック 1 か 2 の
# run の名前を入れるとその続きから学習します。Hugging Face Hub のモデル（`owner/name`）なら、横に置いた小さな行列（LoRA のアダプター）だけを
# 1 周で学習します。候補の 3 つは T4 に入り、`sarashina2.2` は日本語のモデルです。4 ビットで読み込むと、重みのメモリが約 4 分の 1 になります。
# 「システムプロンプト」は、7 のチャットで最初に与える指示です。*

# %%
#@build form ULTRACHAT

# %% [markdown]
# ## 3 · This machine
#
# What this machine is and how it will compute, and why: in which number format, with which GPU programs (*kernels*),
# compiled or not. Then an estimate of memory and time.
#
# *日本語: このマシンで使うもの（数値の形式、GPU 用のプログラム、コンパイルの有無）とその理由、必要なメモリと時間の見積もりです。*

# %%
#@build cell machine

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
# ## 4 · Train
#
# Training runs in a process of its own: it goes on if you close this tab. This cell ends at once, and its picture goes
# on by itself. Left: the loss of each step, the model's mean surprise at a token (in *nats*; 1 nat is 1.44 bits). Right: the
# bits per byte of *held-out* answers, which are set aside and never trained on; ✓ is the best evaluation, whose model is
# kept. **Stop** saves first, **Save** saves and trains on. Run the cell again to see the picture again (after the tab was
# closed, say), or to continue a run that was stopped.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。セルはすぐに終わり、表示は自動で更新されます。左は各ステップの損失（トークン
# あたりの予測の外れ具合。単位は nat で、1 nat は 1.44 ビット）、右は学習に使わない検証用の応答での bits per byte で、✓ が最良の評価です
# （そのモデルが残ります）。停止ボタンは保存してから止め、保存ボタンは保存して学習を続けます。セルを再実行すると、表示し直すか、
# 続きから再開します。*

# %%
#@build cell start

# %% [markdown]
# ## 5 · Wait
#
# The cells below need the trained model, so this one waits for it. Pressing ■ ends the waiting, not the training: then
# you can talk with the best model so far (section 7) while it trains on.
#
# *日本語: 学習が終わるまで待つセルです。■ を押すと待つのをやめるだけで、学習は続きます。その時点で最良のモデルと 7 で会話できます。*

# %%
#@build cell wait

# %% [markdown]
# ## 6 · Read the result
#
# **Bits per byte** of the held-out answers: how many bits the model needs for a byte of text it was never trained on; 8 means
# that it knows nothing, and lower is better. The figure stands beside that of the bigram table (which only knows which
# token follows which), of the start before training, and of your earlier runs on the same text. Then: what to change, and
# the next command. The table shows the same questions answered at each evaluation.
#
# *日本語: 検証用の応答での bits per byte（1 バイトを言い当てるのに必要なビット数。8 は何も知らない状態で、小さいほど良い値）を、bigram 表（直前の
# トークンだけを使う）、学習前、同じデータでのこれまでの run と比べ、変えるとよい設定と次のコマンドを示します。表は、評価のたびに同じプロンプトへどう答えたかです。*

# %%
#@build cell read

# %% [markdown]
# The same on the **test** text, which was used neither for training nor for choosing the best model:
#
# *日本語: 学習にも最良のモデルの選択にも使っていない、テスト用の文章での結果です。*

# %%
#@build cell test

# %% [markdown]
# ### See what it does
#
# A text coloured by **surprise**: the deeper a token's colour, the more bits it cost the model. The sum of the bits, divided
# by the text's bytes, *is* bits per byte. Then the **context vector** while it reads the same text. A *channel* is one
# number of the vector, and at each token *gates* decide how much of each channel is replaced (orange) or kept (blank).
# The channels at the top remember longest; the numbers at the left say for how many tokens. A model of the hub has
# no context vector, and the cell says so. Try a text of your own.
#
# *日本語: 予測しにくいトークンほど濃い色です（ビット数の合計 ÷ バイト数が bits per byte）。下の図は文脈ベクトルのゲートで、チャンネル
# （ベクトルの 1 つの数）をどれだけ新しい内容に置き換えるか（オレンジ）、残すか（無色）を表します。上のチャンネルほど長く覚えていて、
# 左の数は覚えている長さ（トークン数）です。Hub のモデルには文脈ベクトルがないので、そう表示します。自分の文章でも試してください。*

# %%
#@build cell see

# %% [markdown]
# ## 7 · Talk with it
#
# Answers appear as they are formed; what was said stays in the context vector, however long you talk. Open *The next
# token's probabilities*: you see what each token was drawn from. A *temperature* below 1 makes likely tokens likelier
# still; *top-p* 0.9 draws only from the likeliest tokens that make up 90 %.
#
# *日本語: 学習したモデルと会話します。会話の内容は文脈ベクトルに保たれます。「次のトークンの確率」を開くと、どの候補から選ばれた
# かが見えます。temperature を下げると出やすいトークンがさらに出やすくなり、top-p を 0.9 にすると上位 90 % の候補だけから選びます。*

# %%
#@build cell chat

# %% [markdown]
# ## 8 · Give it away
#
# Write `to="your-name/your-model"` and run the cell: the model goes to the Hugging Face hub, with a card that says what it
# is, what it was trained on, and how to load it. Only you see it there, unless you write `public=True`. It needs a *token*
# with write access, named `HF_TOKEN` (in Colab a secret: the key icon on the left). `gguf=True` also writes a file for
# llama.cpp and Ollama, if they know this kind of model: they know most models of the hub, and not New-LLM.
#
# *日本語: `to="your-name/your-model"` と書いて実行すると、モデルカード付きで Hugging Face Hub にアップロードします。`public=True` と
# 書かなければ非公開です。書き込みできるトークン `HF_TOKEN` が必要です（Colab では左の鍵のアイコンの「シークレット」）。`gguf=True` は
# llama.cpp と Ollama 用のファイルも書き出します（Hub の多くのモデルで使えますが、New-LLM では使えません）。*

# %%
#@build cell give

# %% [markdown]
# ## 9 · Keep it, and go on
#
# A copy on Google Drive, if the form says so, with all that is needed to continue training; one file to download; and
# what comes next.
#
# *日本語: フォームで選んであれば、学習を再開できる形で Google ドライブに保存します。続いて、ダウンロード用のファイルと、次のステップを
# 表示します。*

# %%
#@build cell keep

# %% [markdown]
# ## Next
#
# - **Better**: `100k` → `all`, or four layers; each choice gets a run of its own, and the report sets it beside the
#   earlier ones.
# - **Code**: notebook 2 with *Data* `code_alpaca` and this run's name in *Start from*.
# - **Slow**: `10k`, one layer, shorter sequences. **Out of memory**: handled by itself, the batch stays the same.
# - **One line** does the same without a notebook: `colab_bootstrap.sh ultrachat --num_layers 4 --max_samples 100000`;
#   see [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
#
# *日本語: もっと良くするには、`100k` を `all` にするか、4 層にします。どれも別の run になり、これまでの run と並べて示されます。
# コードを学習するには、ノートブック 2 でデータに `code_alpaca` を選び、この run の名前を「Start from」に入れます。遅いときは `10k`、
# 1 層、短い系列で試してください。メモリ不足は自動で調整されます。ノートブックなしでも 1 行でできます：
# [README_COLAB.ja.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.ja.md)。*
