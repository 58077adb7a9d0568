# %% [markdown]
# # New-LLM 1 · Pretraining on WikiText-2, and the comparison with attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/01_wikitext_pretraining.ipynb)
#
# A transformer looks back at every earlier token each time it predicts the next one, so its memory grows with the text.
# **New-LLM has no attention**: each layer carries one *context vector* of fixed size from token to token. Gates decide
# what is kept and what is written; they look at the tokens just read, never at the context vector, so a whole sequence
# is trained at once, and yet the model writes a text of any length in constant memory.
#
# This notebook trains New-LLM and **TinyGPT2**, an attention model with the same number of parameters, on the same
# tokens, and then asks which one predicts unseen text better. Choose *Runtime → Change runtime type → GPU* (a free T4
# is enough), then *Runtime → Run all*.
#
# *日本語: 注意機構を持たない New-LLM と、同じ大きさの TinyGPT2 を同じデータで学習し、比べるノートブックです。
# ランタイムのタイプを GPU にして「すべてのセルを実行」してください。*

# %% [markdown]
# ## Bits per byte, the figure to watch
#
# A language model gives each next token a probability. If it gives the right one probability ½, it needs 1 bit to say
# which it was; at ¼, 2 bits; at 1/1024, 10 bits. Add up the bits for a text and divide by its size in bytes: **bits per
# byte**, the size of the text if the model were used to compress it. 8 means nothing learnt; `gzip` gets about 3 on
# English; lower is better.
#
# *Perplexity*, the usual figure, counts per token and so depends on the vocabulary: a model with only 1,000 words can
# boast a perplexity of 20 by calling every third word `<unk>`. Bits per byte cannot be fooled: letters that were lost
# are paid for at full price. As a yardstick we also print two models that only count: **unigram** (how frequent is each
# token) and **bigram** (which token follows which).

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds what this machine lacks; torch and numpy stay as they are. Inside an installed clone there
# is nothing to do.
#
# *日本語: 足りないものだけを入れます（torch と numpy には触れません）。*

# %%
#@build install

# %% [markdown]
# ## 2 · Settings
#
# `wikitext` is the guide's job: Wikipedia articles, up to 100 epochs, stopped when the validation text stops improving.
# `demo` is smaller: 7,168 human conversations and few epochs, a good first look, above all without a GPU.
#
# *日本語: `wikitext` が本番、`demo` は短いお試しです。*

# %%
#@build form PRETRAINING

# %% [markdown]
# ## 3 · This machine
#
# One probe decides number format, kernels and compilation, and says why; then an estimate of memory and time for these
# settings.
#
# *日本語: この機械で使うものとその理由、必要なメモリと時間の見積もりです。*

# %%
from newllm_lib.colab.report import machine

machine(settings);

# %% [markdown]
# ## 4 · Train New-LLM
#
# Training runs in a process of its own: it goes on if you close this tab. **Stop** saves first, **Save** writes a
# checkpoint and trains on. Run the cell again to look again, or to continue a run that was stopped. Left is the loss of
# each step, right the bits per byte on the validation text; ✓ marks the best evaluation, whose model is kept. Below
# stands what the model makes of the same few words, evaluation after evaluation.
#
# *日本語: 学習はタブを閉じても続きます。停止ボタンは保存してから止まり、セルを再実行すると続きから再開します。*

# %%
from newllm_lib.colab.background import train

new_llm = train(settings)

# %% [markdown]
# ## 5 · Train TinyGPT2
#
# GPT-2's architecture, as wide as it takes to have New-LLM's number of parameters (within 2 %); the same tokenizer, the
# same blocks of text in the same order.
#
# *日本語: 同じパラメータ数の GPT-2 を同じデータで学習します。*

# %%
tiny_gpt2 = train(settings, model="tiny_gpt2")

# %% [markdown]
# Both runs in one picture:

# %%
from newllm_lib.colab.live import watch

watch(new_llm, tiny_gpt2);

# %% [markdown]
# ## 6 · Compare
#
# On the **test** split, which neither training nor the choice of the best model has seen: prediction, samples of both
# on the same beginnings, speed and memory. The difference is New-LLM's, in % of TinyGPT2's.
#
# *日本語: 学習に使っていないテスト用の文章で比べます。*

# %%
from IPython.display import Image, display

from newllm_lib.evaluation.compare.compare import compare

comparison = compare(new_llm, tiny_gpt2, output_dir=new_llm.path)
display(Image(comparison["files"][1]))

# %% [markdown]
# **How to read it.** Below the unigram table: the model has learnt which words are frequent. Below the bigram table: it
# uses more than the last token, which is where language begins. If a model is still above the bigram table, train
# longer (*Epochs*) or larger (*Size*); if validation rises while training falls, it learns by heart: more text helps.

# %% [markdown]
# ## 7 · Talk with it
#
# What was said is kept in the context vector, so no token is read twice, however long the conversation becomes. A model
# trained on Wikipedia continues your text; one trained on `demo` answers in turns. Small models babble: it is the
# figures above that say what was learnt.
#
# *日本語: 会話の内容は文脈ベクトルに保たれます。*

# %%
from newllm_lib.colab.chat_widget import chat

first = "Hello! How are you today?" if settings.name == "demo" else "The city was founded in"
conversation = chat(new_llm, first=first)

# %% [markdown]
# ## 8 · Keep it
#
# If the form says so, both runs were copied to Google Drive (`MyDrive/new-llm`) while they trained; this brings the copies
# up to date, pictures of the comparison included. Outside Colab the runs simply stay in `checkpoints/`.
#
# *日本語: 学習中の複製を最新の状態にします。*

# %%
from newllm_lib.colab import drive, environment

for run in (new_llm, tiny_gpt2):
    if settings.extra["save_to_drive"] and environment.on_colab():
        drive.save(run)

# %% [markdown]
# One file to download: New-LLM's best model, tokenizer, curves, log and the comparison. Its folder `best` loads with
# `AutoModelForCausalLM.from_pretrained` after `import newllm_lib.models`.

# %%
from newllm_lib.colab.download import download

download(new_llm, extra=comparison["files"]);

# %% [markdown]
# ## Next
#
# - **Another session**, or Colab took the machine away: run all cells again. A run that is on Drive is brought back and
#   continued at its last save, with the same curve as if nothing had happened.
# - **Larger or longer**: change *Size* or *Epochs* above and run again; every choice that changes the model gets a run
#   of its own.
# - **The old figures**: `protocol = seed` trains with the original's 1,000 words and its metric; the table then shows
#   what a perplexity of 20 meant in bits per byte.
# - **Your own text**: put `train.txt` into a folder and name it in the form.
# - **The command line** does the same: the line under the form, `newllm compare`, `newllm chat`. See
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
