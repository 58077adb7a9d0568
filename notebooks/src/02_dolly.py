# %% [markdown]
# # New-LLM 2 · Dialogue on Dolly-15k, and the sets around it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/02_dolly.ipynb)
#
# A model that has read Wikipedia continues a text; it does not answer. Here a small model learns to **answer**: from
# 15,000 instructions that people wrote and answered (Dolly), or from one of the sets around it. Each dialogue is read
# whole, turn by turn, with its speakers; the loss counts the assistant's answers alone.
#
# Choose *Runtime → Change runtime type → GPU* (a free T4 is enough), then *Runtime → Run all*.
#
# *日本語: 人が書いた指示と応答（Dolly）や、その周りのデータで、質問に答えることを学習します。損失は応答の部分だけで計算します。
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
# A step may start where the last one ended: put that run's name into *Start from*. Fine-tuning keeps the run's
# tokenizer and sizes; a model from scratch gets its own. A model of the Hugging Face hub (`owner/name`) is a start, too:
# it is taught these dialogues by LoRA adapters.
#
# *日本語: 易しい順に並べたデータです。前の段階の run の名前を「Start from」に入れると、その続きから学習します。Hugging Face Hub の
# モデル（`owner/name`）を入れると、LoRA で追加学習します。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds what this machine lacks; torch and numpy stay as they are.
#
# *日本語: プロジェクトを取得し、足りないものだけを入れます（torch と numpy は変えません）。*

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# Left alone, Dolly is the guide's run: one layer, 128 tokens, 2,048 sequences a step, learning rate 8e-4, up to 100
# epochs (passes over the data), stopped after 20 without a better one. What does not fit the GPU at once is computed in
# parts whose gradients are added up: the result is the same. *Rank of LoRA adapters* leaves the weights of a start as
# they are, and trains small matrices beside them.
#
# *日本語: 空欄のままなら、Dolly は旧ガイドと同じ設定です（1 層、128 トークン、1 ステップ 2,048 系列）。GPU に一度に入らない分は
# 分けて計算し、バッチサイズは変わりません。「LoRA のランク」を入れると、元の重みの代わりに小さな行列だけを学習します。*

# %%
#@build form DIALOGUE

# %% [markdown]
# ## 3 · This machine
#
# What this machine is, what will be used on it and why, and an estimate of memory and time.
#
# *日本語: このマシンで使うものとその理由、必要なメモリと時間の見積もりです。*

# %%
#@build cell machine

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
# ## 4 · Train
#
# Training runs in a process of its own: it goes on if you close this tab. This cell ends at once, and its picture goes
# on by itself: left the loss of each step, right the bits per byte of the held-out answers; ✓ is the best evaluation,
# whose model is kept. **Stop** saves first, **Save** writes a checkpoint and trains on. Run the cell again to look
# again (after the tab was closed, say) or to continue a run that was stopped.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。セルはすぐに終わり、表示は自動で更新されます。左は学習の損失、右は
# 検証用の応答での bits per byte で、✓ が最良の評価です。停止ボタンは保存してから止め、保存ボタンは保存して学習を続けます。
# セルを再実行すると、表示し直すか、続きから再開します。*

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
# **Bits per byte** of the *held-out* answers (set aside, never trained on), beside the bigram table (which only knows which token follows which), the
# start before training, and your earlier runs on the same text; then what to change, and the next command. Perplexity
# depends on the vocabulary: the guide's 15 to 25 were measured with 1,000 words and cannot be compared.
#
# The table shows the same questions answered at each evaluation, so that you see whether the answers become better or
# only the figure does. Answers that are empty or repeat themselves are counted.
#
# *日本語: 検証用の応答での bits per byte を、bigram 表、学習前、同じデータでのこれまでの run と比べ、変えるとよい設定と次の
# コマンドを示します。表は、評価のたびに同じプロンプトへどう答えたかです。空の応答や繰り返しは数えて示します。パープレキシティは
# 語彙によって変わるので、1,000 語で測った旧ガイドの 15〜25 とは比べられません。*

# %%
#@build cell read

# %% [markdown]
# On the **test** split, which neither training nor the choice of the best model has seen:
#
# *日本語: 学習にも最良のモデルの選択にも使っていない、テスト用の文章での結果です。*

# %%
#@build cell test

# %% [markdown]
# ### See what it does
#
# A text coloured by **surprise**: the deeper a token's colour, the more bits it cost the model. Their sum, divided by
# the text's bytes, *is* bits per byte. Then the **context vector** while it reads the same text: at each token, gates
# decide how much of each channel is replaced. The channels at the top remember longest. Try a text of your own.
#
# *日本語: 予測しにくいトークンほど濃い色です（合計 ÷ バイト数が bits per byte）。下の図は文脈ベクトルのゲートで、
# 上ほど長く覚えているチャンネルです。自分の文章でも試してください。*

# %%
#@build cell see

# %% [markdown]
# ## 7 · Talk with it
#
# Answers appear as they are formed and end where the model ends its turn; what was said stays in the context vector.
# With a few million parameters it babbles; the figures above say what was learnt. Open *The next token's probabilities*:
# you see what each token was drawn from. A *temperature* below 1 makes likely tokens likelier still; *top-p* 0.9 draws only
# from the likeliest tokens that make up 90 %.
#
# *日本語: 学習したモデルと会話します。小さなモデルの文は意味が通らないことも多く、学習の成果は上の数値で見ます。「次のトークンの
# 確率」を開くと、どの候補から選ばれたかが見えます。temperature を下げると出やすいトークンがさらに出やすくなり、top-p を 0.9 に
# すると上位 90 % の候補だけから選びます。*

# %%
#@build cell chat

# %% [markdown]
# ## 8 · Keep it, give it away, go on
#
# To Google Drive, if the form says so, with all that is needed to continue; one file to download; and how to give the
# model away and what comes next.
#
# *日本語: フォームで選んであれば、学習を再開できる形で Google ドライブに保存します。続いて、ダウンロード用のファイル、モデルの
# 公開のしかた、次のステップを表示します。*

# %%
#@build cell keep

# %% [markdown]
# ## Next
#
# - **The next step of the ladder**: change *Data*, put this run's name into *Start from*, and run all again.
# - **It learns by heart** (validation rises while training falls): more text, *Dropout* by the command line, or a start
#   that was trained on more.
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
