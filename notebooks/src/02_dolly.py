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

# %%
#@build cell machine

# %% [markdown]
# ## 4 · Start
#
# One line, in the background: this cell ends at once, and training goes on if you close the tab. Run it again to
# continue a run that was stopped.
#
# *日本語: 学習はバックグラウンドで始まります。*

# %%
#@build cell start

# %% [markdown]
# ## 5 · Watch
#
# The log and the curves while it trains. Interrupting (■) closes the view only; the **Stop** button saves and stops.
# ✓ marks the best evaluation so far, by bits per byte of the held-out answers. Below each evaluation stands what the
# model says to a fixed question.
#
# *日本語: 学習の様子です。■ で表示だけを閉じられます。停止ボタンは保存してから止めます。*

# %%
#@build cell watch

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

# %%
#@build cell test

# %% [markdown]
# ## 7 · Talk with it
#
# Answers appear as they are formed and end where the model ends its turn; what was said stays in the context vector.
# With a few million parameters it babbles; the figures above say what was learnt.

# %%
#@build cell chat

# %% [markdown]
# ## 8 · Keep it
#
# To Google Drive, if the form says so, with all that is needed to continue; and one file to download.
#
# *日本語: ドライブへの保存とダウンロードです。*

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
