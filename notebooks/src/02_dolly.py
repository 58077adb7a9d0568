# %% [markdown]
# # New-LLM 2 · Dialogue on Dolly-15k, and the sets around it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/02_dolly.ipynb)
#
# A model that has read Wikipedia continues a text; it does not answer. Here a small model learns to **answer**: from
# 15,000 instructions that people wrote and answered (the data set Dolly), or from one of the sets in the table below. Each
# dialogue is read whole, turn by turn, with its speakers. Only the assistant's answers are learned, not the questions.
#
# Choose *Runtime → Change runtime type → GPU* (a free T4 is enough), then *Runtime → Run all*.
#
# *日本語: 人が書いた指示と応答（Dolly）や、下の表のデータで、質問に答えることを学習します。対話は話し手の区別も含めて丸ごと読み、損失は
# 応答の部分だけで計算します。
# 「ランタイム」→「ランタイムのタイプを変更」で GPU を選び、「すべてのセルを実行」してください。*

# %% [markdown]
# ## The ladder
#
# | | set | what it teaches |
# |---|---|---|
# | 1 | `dolly` | 15,000 instructions, with answers by people |
# | | `dailydialog` | 13,118 conversations of daily life; starts from your WikiText run by itself |
# | 2 | `hh_rlhf` | 160,800 dialogues, with the answers that people preferred |
# | 3 | `ultrachat` | 1.5 million long dialogues: notebook 3 |
# | 4 | `code_alpaca` | 20,000 instructions answered with code |
# | | `dolly_ja`, `alpaca_ja` | instructions in Japanese |
#
# What you train from is the form's field *Start from*:
#
# - empty, a **new New-LLM** is trained;
# - with the name of a **run** (an earlier training, such as `new_llm_demo` of notebook 1), that model learns on. This is
#   *fine-tuning*: it keeps its tokenizer and its sizes;
# - with a **model of the Hugging Face hub** (`owner/name`), that model is taught these dialogues. It has read far more text
#   than you can here, so expect better answers. Its own weights stay as they are, and small matrices beside them are
#   trained (*LoRA adapters*). The list proposes three that fit a T4: two know English, `sarashina2.2` knows Japanese.
#
# *日本語: 表は易しい順に並べたデータです（番号のない行は別の種類のデータです）。フォームの「何から始めるか」（Start from）で、学習の出発点を選びます。空欄なら
# 新しい New-LLM を学習します。前の学習（run）の名前、たとえばノートブック 1 の `new_llm_demo` を入れると、そのモデルをファインチューニング
# します（トークナイザーと大きさは元のままです）。Hugging Face Hub のモデル（`owner/name`）を入れると、元の重みは変えず、横に置いた小さな行列（LoRA の
# アダプター）だけを学習します。Hub のモデルははるかに多くの文章を読んでいるので、よりよい応答が期待できます。候補の 3 つは T4 に入り、
# `sarashina2.2` は日本語のモデルです。*

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
# Left alone, Dolly is the run of this project's first guide: one layer, 128 tokens, 2,048 sequences a step, learning rate
# 8e-4, up to 100 epochs (passes over the data), stopped after 20 without a better one. What does not fit the GPU at once is
# computed in parts whose gradients are added up: the result is the same.
#
# Some fields need a word. *Rank of LoRA adapters* is the width of the small matrices. *Hold a model of the hub in 4
# bits* makes a larger model fit: its weights take a quarter of the memory and lose a little precision. *System prompt* is
# what the chat of section 7 tells the model before your first turn ("Answer in one sentence."); it changes nothing in
# training. *Tracker* also sends the curves to a service such as Weights & Biases.
#
# *日本語: 空欄のままなら、Dolly は旧ガイドと同じ設定です（1 層、128 トークン、1 ステップ 2,048 系列、最大 100 エポック）。GPU に一度に入らない分は
# 分けて計算し、バッチサイズは変わりません。「LoRA のランク」は小さな行列の幅です。「4 ビットで読み込む」と、重みのメモリが約 4 分の 1 になり、
# より大きな Hub のモデルが入ります（精度は少し下がります）。「システムプロンプト」は、7 のチャットで最初に与える指示で（例: 「一文で
# 答えてください。」）、学習には影響しません。「学習曲線の送り先」を選ぶと、Weights & Biases などにも曲線を送ります。*

# %%
#@build form DIALOGUE

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
# the next command. *Perplexity* depends on the vocabulary: the first guide's 15 to 25 were measured with 1,000 words and
# cannot be compared.
#
# The table shows the same questions answered at each evaluation, so that you see whether the answers become better or
# only the figure does. Answers that are empty or repeat themselves are counted.
#
# *日本語: 検証用の応答での bits per byte（1 バイトを言い当てるのに必要なビット数。8 は何も知らない状態で、小さいほど良い値）を、bigram 表（直前の
# トークンだけを使う）、学習前、同じデータでのこれまでの run と比べ、変えるとよい設定と次のコマンドを示します。表は、評価のたびに同じプロンプトへどう答えたかです。空の応答や繰り返しは数えて示します。パープレキシティは
# 語彙によって変わるので、1,000 語で測った旧ガイドの 15〜25 とは比べられません。*

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
# Answers appear as they are formed and end where the model ends its turn; what was said stays in the context vector.
# With a few million parameters it babbles; the figures above say what was learnt. *System prompt* in the form is read
# before your first turn. Open *The next token's probabilities*:
# you see what each token was drawn from. A *temperature* below 1 makes likely tokens likelier still; *top-p* 0.9 draws only
# from the likeliest tokens that make up 90 %.
#
# *日本語: 学習したモデルと会話します。フォームの「システムプロンプト」は、最初の発言の前に読まれます。小さなモデルの文は意味が通らないことも多く、学習の成果は上の数値で見ます。「次のトークンの
# 確率」を開くと、どの候補から選ばれたかが見えます。temperature を下げると出やすいトークンがさらに出やすくなり、top-p を 0.9 に
# すると上位 90 % の候補だけから選びます。*

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
# - **The next step of the ladder**: change *Data*, put this run's name into *Start from*, and run all again.
# - **It learns by heart** (*overfitting*: validation rises while training falls): more text, `train(settings, dropout=0.3)`,
#   or a start that was trained on more.
# - **It is slow**: fewer documents, shorter sequences, one layer.
# - **Your own dialogues**: a folder with `train.jsonl`, a record a line: `messages`, or `prompt` and `completion`, or
#   `instruction`, `context` and `response`, and more: `newllm data check FOLDER` says what it is taken for.
# - **The command line** does the same: see
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
#
# *日本語: 次の段階に進むには、データを変え、この run の名前を「Start from」に入れて、すべてのセルを実行します。過学習（学習の損失は
# 下がるのに検証の値が上がる）には、データを増やすか、より多くのデータで学習した run から始めます。遅いときは、文書数、系列長、層を
# 減らします。自分の対話は `train.jsonl` に 1 行 1 件で書き、フォルダーを指定します。コマンドでも同じことができます：
# [README_COLAB.ja.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.ja.md)。*
