# %% [markdown]
# # New-LLM 3 · UltraChat
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/03_ultrachat.ipynb)
#
# 1.5 million dialogues of several turns about everything. They are read whole, with their turns and speakers, in blocks of
# 128 tokens: each block goes on where the one before it stopped. The full set *streams*: it is prepared while it trains,
# so the first loss comes within a minute or two, and memory does not grow.
#
# Choose *Runtime → Change runtime type → GPU* (a free T4 is enough), then *Runtime → Run all*.
#
# *日本語: 150 万件の複数ターンの対話で学習します。対話は途中で切らずに、128 トークンずつ続けて読みます。全件を使う場合は、学習しながら準備するので、最初の損失は 1〜2 分で出ます。
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
# The guide's fifty passes read the first 128 words of each dialogue; four over whole dialogues are about as many tokens.
#
# *日本語: `10k` は動作確認用、`100k` が最初のおすすめ（4 周）、`all` は全件を 1 周します。かかる時間は「This machine」のセルが
# 見積もります。*

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
# `ultrachat_200k` is a filtered part of the set. *Start from* takes a run of notebook 1 or 2 with its tokenizer and
# sizes, or a model of the Hugging Face hub (`owner/name`); empty, the model starts from scratch.
#
# *日本語: `ultrachat_200k` は選別された一部です。「Start from」にノートブック 1 か 2 の run の名前を入れると、その続きから学習します。
# Hugging Face Hub のモデル（`owner/name`）も使えます。空欄なら最初から学習します。*

# %%
#@build form ULTRACHAT

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
# start before training, and your earlier runs on the same text; then what to change, and the next command. The table
# shows the same questions answered at each evaluation.
#
# *日本語: 検証用の応答での bits per byte を、bigram 表、学習前、同じデータでのこれまでの run と比べ、変えるとよい設定と次の
# コマンドを示します。表は、評価のたびに同じプロンプトへどう答えたかです。*

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
# Answers appear as they are formed; what was said stays in the context vector, however long you talk. Open *The next
# token's probabilities*: you see what each token was drawn from. A *temperature* below 1 makes likely tokens likelier
# still; *top-p* 0.9 draws only from the likeliest tokens that make up 90 %.
#
# *日本語: 学習したモデルと会話します。会話の内容は文脈ベクトルに保たれます。「次のトークンの確率」を開くと、どの候補から選ばれた
# かが見えます。temperature を下げると出やすいトークンがさらに出やすくなり、top-p を 0.9 にすると上位 90 % の候補だけから選びます。*

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
