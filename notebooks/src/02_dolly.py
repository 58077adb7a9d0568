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
# *日本語: 指示と応答のデータで対話を学習します。ランタイムを GPU にして「すべてのセルを実行」してください。*

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
# tokenizer and sizes; a model from scratch gets its own.
#
# *日本語: 易しい順の段階です。前の段階の名前を Start from に入れると、その続きから学習します。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds what this machine lacks; torch and numpy stay as they are.
#
# *日本語: 足りないものだけを入れます（torch と numpy には触れません）。*

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# Left alone, Dolly is the guide's run: one layer, 128 tokens, 2,048 sequences a step, learning rate 8e-4, up to 100
# epochs, stopped after 20 without a better one. What does not fit the GPU at once is accumulated: the batch stays the
# same. *Rank of LoRA adapters* trains small matrices beside a start's weights instead of the weights.
#
# *日本語: そのままなら旧ガイドと同じ設定です。*

# %%
#@build form DIALOGUE

# %% [markdown]
# ## 3 · This machine
#
# What this machine is, what will be used on it and why, and an estimate of memory and time.
#
# *日本語: この機械で使うものとその理由、必要なメモリと時間の見積もりです。*

# %%
#@build cell machine

# %% [markdown]
# ### See the data
#
# Three records as the model will read them, with its tokens for turns and ends; what the loss counts is marked. Below,
# how long the documents are beside a training block. The first time, this reads the data: what training would do anyway.
#
# *日本語: モデルが読む形のデータです。色の部分が学習（損失の計算）に使われます。下は文書の長さです。*

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
# *日本語: 小さな New-LLM を作り、学習を 1 ステップだけ手で行います。練習: `context_dim` を 16 にして、パラメータ数と
# bits per byte がどう変わるか確かめてください。*

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
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。停止ボタンは保存してから止まります。セルを再実行すると、
# 表示し直すか、続きから再開します。*

# %%
#@build cell start

# %% [markdown]
# ## 5 · Wait
#
# The cells below need the trained model, so this one waits for it. Pressing ■ ends the waiting, not the training: then
# you can talk with the best model so far (section 7) while it trains on.
#
# *日本語: 学習が終わるまで待つセルです。■ を押すと待つのをやめるだけで、学習は続きます。途中のモデルとも会話できます。*

# %%
#@build cell wait

# %% [markdown]
# ## 6 · Read the result
#
# **Bits per byte** of the held-out answers, beside the bigram table (which only knows which token follows which), the
# start before training, and your earlier runs on the same text; then what to change, and the next command. Perplexity
# depends on the vocabulary: the guide's 15 to 25 were measured with 1,000 words and cannot be compared.
#
# The table shows the same questions answered at each evaluation, so that you see whether the answers become better or
# only the figure does. Answers that are empty or repeat themselves are counted.
#
# *日本語: 応答部分の bits per byte を、単純な表や前回の実行と比べます。*

# %%
#@build cell read

# %% [markdown]
# On the **test** split, which neither training nor the choice of the best model has seen:
#
# *日本語: 学習に使っていないテスト用の文章での結果です。*

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
# With a few million parameters it babbles; the figures above say what was learnt. Open *The next token's
# probabilities* and move *temperature* and *top-p*: you see what the next token is drawn from.
#
# *日本語: 学習したモデルと会話します。「次のトークンの確率」を開くと、次の言葉の候補が見られます。*

# %%
#@build cell chat

# %% [markdown]
# ## 8 · Keep it, give it away, go on
#
# To Google Drive, if the form says so, with all that is needed to continue; one file to download; and how to give the
# model away and what comes next.
#
# *日本語: ドライブへの保存、ダウンロード、公開のしかた、次のステップです。*

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
#   `instruction`, `context` and `response`.
# - **The command line** does the same: see
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
