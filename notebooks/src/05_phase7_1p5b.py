# %% [markdown]
# # New-LLM 5 · Phase 7: up to 1.5 billion parameters
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/05_phase7_1p5b.ipynb)
#
# **Phase 7** looks back at the last 128 *tokens* (words, or pieces of words) by their distance in *hyperbolic space*: a curved
# space in which things that branch like a tree, as meanings do, find more room. Everything older is carried in a
# **state-space branch**, a memory of fixed size. A gate mixes the two.
# The tables that turn words into vectors and back are two small *tensor-train* cores, which are multiplied when needed,
# instead of 100 million numbers. There are four presets, from 25 million to **1.5 billion parameters**. The large ones
# train in a few GiB of GPU memory: numbers have 16 bits (bfloat16) and are rounded up or down by chance, so that small
# changes are not lost; each parameter is updated as soon as its gradient is known; intermediate results wait in the
# computer's main memory.
#
# Choose *Runtime → Change runtime type → GPU*, then *Runtime → Run all*. With *auto* in the form, the preset is the one
# that learns most on your GPU in the time you have, so on a free T4 this is a matter of minutes; for 1.5B choose it by name.
#
# *日本語: 15 億パラメータまでの Phase 7 を学習するノートブックです。直近の 128 トークン（単語か、その一部）は双曲空間（木のように枝分かれする
# ものに広い場所がある、曲がった空間）での距離で見て、それより前は大きさの決まった状態空間の枝で運び、ゲートが両者を混ぜます。大きなモデルも数 GiB の GPU メモリで学習できます（16 ビットの数の確率的な丸め、勾配が出しだいの
# 更新、途中の値をメインメモリに置く方法）。`auto` のままなら、この GPU と使える時間で最もよく学習できる大きさが選ばれます。15 億は名前で選んで
# ください。「ランタイム」→「ランタイムのタイプを変更」で GPU を選び、「すべてのセルを実行」します。*

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
# To continue a run in another session, on another GPU perhaps, choose its preset by name.
#
# *日本語: 別のセッション（別の GPU かもしれません）で続けるときは、プリセットを名前で選んでください。*

# %%
#@build form PHASE7

# %% [markdown]
# ### See the model
#
# A very small Phase 7, and one step of training by hand. Look for the hyperbolic attention, the state-space branch
# and the tensor-train cores. **Exercise**: set `attention_window` to 1 and to 64: which numbers of parameters change, and
# which do not? Why?
#
# *日本語: 小さな Phase 7 を作り、学習を 1 ステップだけ手で行います。双曲アテンション、状態空間の枝、テンソルトレインのコアを探して
# みてください。練習: `attention_window` を 1 と 64 にすると、どのパラメータ数が変わり、どれが変わらないでしょうか。なぜでしょうか。*

# %%
#@build cell model_phase7

# %% [markdown]
# ## 3 · Check
#
# What this machine is and how it will compute, and why. On a GPU each of our GPU programs (*kernels*) is run once and compared
# with plain torch in double precision, gradients too: a driver that computes nonsense is found here and not after a night
# of training.
#
# *日本語: このマシンで使うものとその理由です。GPU では、専用のプログラム（カーネル）を 1 つずつ動かし、倍精度の torch の値と勾配まで比べます。
# ドライバーの不具合を、一晩学習する前に見つけるためです。*

# %%
from newllm_lib.colab.phase7 import check, plan

check()

# %% [markdown]
# ## 4 · What fits, how long it takes, what it reaches
#
# *Computed* speeds are worked out from the GPU's data sheet and from what other sizes reached. They may be wrong by a
# factor of two; the live view in section 7 soon knows better. The last columns matter most: a model is used well with about **20 tokens for each of its
# parameters** ([Hoffmann et al., 2022](https://arxiv.org/abs/2203.15556)); with far fewer, a smaller model
# learns more in the same time. 1.5B parameters want 30 billion tokens, weeks on one H100: what a session buys is its
# beginning.
#
# *日本語: どの大きさがどの GPU に入り、何時間でどこまで進むかの見積もりです（computed は計算値で、2 倍ほどずれることがあります）。
# パラメータあたり約 20 トークンが目安で、それよりずっと少ないなら、小さいモデルのほうが同じ時間でよく学習します。15 億パラメータには
# 300 億トークンが必要で、1 セッションは学習の始まりにすぎません。*

# %%
chosen = plan(settings)

# %% [markdown]
# ## 5 · The data recipe
#
# Move the sliders to mix sources; `demo` needs no network. With all at 0, the preset's own data are used (UltraChat, or
# ChitChat for the small one). The button *Mix* makes the mixture at once; without it the next cell does. *Run all* comes by
# here before you can move anything, and the next cell says what it took. To mix by sliders, move them and run the cells
# below again, or write the shares into the form (*Data recipe*).
#
# *日本語: スライダーでデータの配合を決めます（`demo` はネットワークがなくても使えます）。すべて 0 なら、プリセットのデータを使います。
# Mix ボタンを押すとすぐに作り、押さなければ次のセルが作ります。「すべてのセルを実行」では、スライダーを
# 動かす前に次のセルへ進みます。動かしたあとで下のセルを実行し直すか、フォームの「データの配合」に書いてください。*

# %%
from newllm_lib.colab.mixture import mix

mixture = mix(settings)

# %% [markdown]
# What stands there now is what training reads (and `make train-phase7-1.5b` too):
#
# *日本語: 今の配合が学習に使われます（`make train-phase7-1.5b` でも同じです）。*

# %%
settings = mixture.settings()

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
# ## 6 · Test run
#
# Ten steps of a model that any machine can train, in the memory-saving way where the GPU can: training, evaluation, saving
# and loading are tried before anything long begins. The log has a line for each step.
#
# *日本語: 長い学習の前に、どのマシンでも動く大きさで 10 ステップだけ学習し、評価、保存、読み込みまで試します。*

# %%
from newllm_lib.colab.background import train, wait
from newllm_lib.colab.forms import Settings
from newllm_lib.runs import tail

test = train(Settings("phase7_test", {"seed": settings.recipe().seed}))
wait(test)
print(*(line for line in tail(test, 100) if line.startswith("Step")), sep="\n")

# %% [markdown]
# ## 7 · Train
#
# Training runs in a process of its own: it goes on if you close this tab. The cell ends at once, and its picture goes on by
# itself. **Stop** saves first, **Save** saves and trains on. Left: the loss of each step, the model's mean surprise at a
# token (in *nats*; 1 nat is 1.44 bits). Right: **bits per byte** on the *validation text*, which is never trained on: how many
# bits the model needs for a byte of it (8: it knows nothing; lower is better). ✓ marks the best, whose model is kept. A
# copy on Drive is made while it trains, if the form says so.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。セルはすぐに終わり、表示は自動で更新されます。停止ボタンは保存してから
# 止め、保存ボタンは保存して学習を続けます。左は各ステップの損失（トークンあたりの予測の外れ具合。単位は nat で、1 nat は 1.44 ビット）、右は
# 学習に使わない検証用の文章での bits per byte（1 バイトを言い当てるのに必要なビット数。8 は何も知らない状態で、小さいほど良い値）で、✓ が最良の
# 評価です。フォームで選んであれば、学習中に Google ドライブへコピーします。*

# %%
#@build cell start

# %% [markdown]
# ## 8 · Wait
#
# The cells below need the trained model, so this one waits for it. ■ (stop the cell) ends the waiting, not the training: then
# you can talk with the best model so far in section 11.
#
# *日本語: 学習が終わるまで待ちます。■（セルの停止）を押すと待つのをやめるだけで、学習は続きます。その時点で最良のモデルと 11 で会話できます。*

# %%
#@build cell wait

# %% [markdown]
# ## 9 · Resume
#
# After Stop, a crash or a new session the cell of section 7 continues the run at its last save, with the same data order
# and the same curve (from Drive, if the machine is new). A finished run is only shown, as here:
#
# *日本語: 停止、異常終了、切断のあとは、7 のセルを実行すると、最後の保存から同じデータ順で続きます（新しいランタイムではドライブの
# コピーから）。終わった run は、ここのように表示されるだけです。*

# %%
run = train(settings)

# %% [markdown]
# ## 10 · Result
#
# Bits per byte on the **test** text, which was used neither for training nor for choosing the best model. Beside it stand two
# models that only count: *unigram* (how frequent is each token) and *bigram* (which token follows which). Below *bigram*,
# the model uses more than the last token.
#
# *日本語: 学習にも最良のモデルの選択にも使っていないテスト用の文章での bits per byte を、数えるだけの表（トークンの頻度だけの unigram と、直前の
# トークンだけの bigram）と比べます。bigram より小さければ、直前のトークンより前も使っています。*

# %%
#@build cell test

# %% [markdown]
# What that means, and how the model continued the same beginnings while it learned:
#
# *日本語: 数値の意味と、学習中に同じ書き出しから書いた文です。*

# %%
#@build cell read

# %% [markdown]
# ## 11 · Talk with it
#
# The past is kept in the state and in a window of 128 tokens, so memory stays the same however long you talk. Small models
# babble: the figures above say what was learnt.
#
# *日本語: 学習したモデルと会話します。過去は状態と 128 トークンの窓に保たれるので、どれだけ長く話してもメモリは増えません。小さな
# モデルの文は意味が通らないことも多く、学習の成果は上の数値で見ます。*

# %%
from newllm_lib.colab.chat_widget import chat

conversation = chat(run, first="Hello! How are you today?")

# %% [markdown]
# ## 12 · Give it away
#
# Write `to="your-name/your-model"` and run the cell: the model goes to the Hugging Face hub, with a card that says what it
# is, what it was trained on, and how to load it. Only you see it there, unless you write `public=True`. It needs a *token*
# with write access, named `HF_TOKEN` (in Colab a secret: the key icon on the left). A file for llama.cpp and Ollama
# (`gguf=True`) is not possible: they do not know Phase 7.
#
# *日本語: `to="your-name/your-model"` と書いて実行すると、モデルカード付きで Hugging Face Hub にアップロードします。`public=True` と
# 書かなければ非公開です。書き込みできるトークン `HF_TOKEN` が必要です（Colab では左の鍵のアイコンの「シークレット」）。llama.cpp と
# Ollama 用のファイル（`gguf=True`）は、Phase 7 では作れません。*

# %%
#@build cell give

# %% [markdown]
# ## 13 · Keep it, and go on
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
# - **1.5B**: choose `phase7_1.5b`, and `max_steps` for the hours you have (section 4 names a number): the learning rate then
#   falls to its end within that time. A checkpoint of 1.5B is about 4 GB: look at Drive's free space first.
# - **Phase 8**: choose `phase8_small`, the same size with linear attention to all of the past, and compare
#   (`newllm compare phase8_small_triton phase7_small_triton`).
# - **The guide's commands** do the same: `make check-phase7-env`, `make recipe`, `make train-phase7-1.5b`, … See
#   [README_COLAB.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.md).
#
# *日本語: 15 億パラメータには `phase7_1.5b` を選び、使える時間に合わせて `max_steps` を入れます（目安は 4 に出ます）。チェックポイントは
# 約 4 GB なので、先にドライブの空き容量を確かめてください。`phase8_small` は同じ大きさで、過去のすべてに線形アテンションを使います。
# `newllm compare phase8_small_triton phase7_small_triton` で比べられます。ガイドの `make` コマンドも使えます：
# [README_COLAB.ja.md](https://github.com/rato-tokyo/new-llm/blob/main/README_COLAB.ja.md)。*
