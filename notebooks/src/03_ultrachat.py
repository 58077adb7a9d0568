# %% [markdown]
# # New-LLM 3 · UltraChat
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/03_ultrachat.ipynb)
#
# 1.5 million dialogues of several turns about everything. They are read whole: the turns, the speakers, to the end, in
# blocks that go on where the last one stopped. The full set streams: it is prepared while it trains, so the first loss
# comes within a minute or two and memory stays flat.
#
# Choose *Runtime → Change runtime type → GPU* (a free T4 is enough), then *Runtime → Run all*.
#
# *日本語: 150 万件の複数ターン対話で学習します。まず 100k（10 万件）で試してください。*

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
# *日本語: 10k は動作確認、100k が推奨、all は全件を一周します。*

# %% [markdown]
# ## 1 · Install

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# `ultrachat_200k` is a filtered part of the set. *Start from* takes a run of notebook 1 or 2 with its tokenizer and
# sizes; empty, the model starts from scratch.

# %%
#@build form ULTRACHAT

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
# ✓ marks the best evaluation so far, by bits per byte of the held-out answers.
#
# *日本語: 学習の様子です。■ で表示だけを閉じられます。停止ボタンは保存してから止めます。*

# %%
#@build cell watch

# %% [markdown]
# ## 6 · Read the result
#
# **Bits per byte** of the held-out answers, beside the bigram table (which only knows which token follows which), the
# start before training, and your earlier runs on the same text; then what to change, and the next command. The table
# shows the same questions answered at each evaluation.
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
# - **Better**: `100k` → `all`, or four layers; each choice gets a run of its own, and the report sets it beside the
#   earlier ones.
# - **Code**: notebook 2 with *Data* `code_alpaca` and this run's name in *Start from*.
# - **Slow**: `10k`, one layer, shorter sequences. **Out of memory**: handled by itself, the batch stays the same.
# - **One line** does the same without a notebook: `colab_bootstrap.sh ultrachat --num_layers 4 --max_samples 100000`;
#   see [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
