# %% [markdown]
# # New-LLM 4 · DPO with LoRA: teaching a model to prefer
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/04_dpo_lora.ipynb)
#
# A language model says what is likely, not what is helpful. **Direct Preference Optimization** shows it pairs of answers
# to the same question, a better and a worse one, and raises the probability of the better one relative to the worse
# ([Rafailov et al., 2023](https://arxiv.org/abs/2305.18290)). **LoRA** trains small matrices beside the frozen weights,
# so the whole thing fits a free T4, and the untouched model is its own reference.
#
# Sections 1 to 7 are the quick path: run them from the top (*Runtime → Change runtime type → T4 GPU*, then *Run all*).
# Section 8 is the experiment path: a sweep, your own data, what to do when something goes wrong.
#
# *日本語: 選好学習（DPO）のノートブックです。同じプロンプトへの良い応答と悪い応答のペアを示し、良い応答の確率を相対的に上げます。
# LoRA は元の重みを固定し、横に置いた小さな行列だけを学習します。1〜7 は上から実行するだけの短いコース、8 は実験コースです。
# 「ランタイム」→「ランタイムのタイプを変更」で T4 GPU を選び、「すべてのセルを実行」してください。*

# %% [markdown]
# ## What counts as success
#
# Everything is measured on **held-out pairs about facts that training never mentions**, before and after:
#
# - **accuracy**: share of the pairs whose better answer the model finds more probable; **margin**: by how much, in *nats*
#   (0.69 nats more: twice as probable). Both with 95 % intervals: only where the intervals before and after stand apart
#   was something learned.
# - The **loss** starts at 0.693 (log 2: no preference yet) and falls. At the guide's learning rate of 5e-6 it hardly
#   moves in one epoch, and that is shown as it is.
# - **KL** (a distance between two models): how far the answers have moved from the base's. A run whose answers become empty or repeat themselves is
#   stopped and not called a success, whatever its accuracy.
#
# *日本語: 学習に一度も出てこない事実についてのペアで、学習の前後を比べます。正解率は、良い応答のほうが確率の高いペアの割合、
# マージンはその差です（単位は nat。0.69 nat で確率が 2 倍）。前後の 95 % 信頼区間が重ならなければ、学習の効果があったといえます。損失は 0.693（まだ好みがない状態）
# から始まります。KL は元のモデルからの距離です。応答が空になったり繰り返したりする run は止められ、成功とは見なされません。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds what this machine lacks (`trl` on Colab); torch and numpy stay as they are.
#
# *日本語: プロジェクトを取得し、足りないもの（Colab では `trl`）だけを入れます（torch と numpy は変えません）。*

# %%
#@build install

# %% [markdown]
# What is loaded must be what is installed; if not, the next cell says what to do.
#
# *日本語: 読み込まれたライブラリが、インストールされた版と同じか確かめます。違えば、どうすればよいかを表示します。*

# %%
from newllm_lib.colab.preferences import answer, look, packages, report, sweep

packages();

# %% [markdown]
# ## 2 · Settings
#
# The defaults are the guide's. DialoGPT was trained on English, and GPT-2's vocabulary spends about 1.5 tokens on a Japanese
# character: 128 tokens hold some 85 characters. For the Japanese pairs a Japanese base (rinna, open-calm, sarashina) is
# the better choice; a base that knows no Japanese cannot be preferred into knowing it, but *epochs of learning the
# preferred answers first* can teach it some. One of your own runs (`new_llm_demo`) is a base like any other.
#
# *日本語: 空欄のままなら旧ガイドの設定です。DialoGPT は英語のモデルなので、日本語のペアには日本語のモデル（rinna、open-calm、
# sarashina）を選んでください。日本語を知らないモデルは、選好学習では日本語を覚えません。「先に良い答えを学ぶエポック数」で少し
# 教えることはできます。自分の run（`new_llm_demo` など）も使えます。*

# %%
#@build form DPO

# %% [markdown]
# ### See the model
#
# LoRA on a model of a toy's size: the weights stay as they are, and beside each chosen matrix two thin ones are trained
# (`lora_A`, `lora_B`). **Exercise**: set `r` to 1 and to 32: how many parameters are trained, and what happens to the
# margin if you type that as *Rank of the LoRA adapters*?
#
# *日本語: 小さなモデルに LoRA を付けます。元の重みは固定し、細い行列（`lora_A` と `lora_B`）だけを学習します。練習: `r` を
# 1 と 32 にして、学習するパラメータ数を比べてください。その値をフォームの「LoRA のランク」に入れると、マージンはどうなるでしょうか。*

# %%
#@build cell model_lora

# %% [markdown]
# ## 3 · The pairs
#
# Made from 101 facts on AI, programming and data science and 21 question forms. Rejected answers are vague, off topic,
# wrong, curt or repetitive, and of the same length. Could the two be told apart without understanding? A guess by length
# or by the first words should be right in about 50 %. Single words give vague and curt answers away, but not a fact about
# another term.
#
# *日本語: AI、プログラミング、データサイエンスの 101 の事実と 21 の質問の形から作ったペアです。悪い応答は、あいまい、話題違い、誤り、
# そっけない、繰り返しのどれかで、長さは良い応答と同じです。内容を理解せずに見分けられないことも確かめます（長さや最初の語だけなら
# 約 50 %）。*

# %%
pairs = look(settings)

# %% [markdown]
# ## 4 · Train
#
# In a process of its own: it goes on if you close this tab, the **Stop** button saves first, and running the cell again
# continues. Blue is training, orange the held-out pairs with their 95 % intervals. The axes never show less than a
# difference is worth: a flat line means that nothing was learned.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。停止ボタンは保存してから止め、セルを再実行すると続きから再開します。
# 青が学習、オレンジが検証用のペア（95 % 信頼区間つき）です。線が平らなら、何も学習されていません。*

# %%
#@build cell start

# %% [markdown]
# The cells below need the trained model. ■ ends the waiting, not the training.
#
# *日本語: 学習が終わるまで待ちます。■ を押すと待つのをやめるだけで、学習は続きます。*

# %%
#@build cell wait

# %% [markdown]
# ## 5 · Result
#
# Each arrow is a held-out pair: from its margin before training to the one after. Right of the zero line the better
# answer is the likelier one. Preference learning moves arrows to the right.
#
# *日本語: 矢印は、学習に使っていないペアのマージンの、学習前 → 学習後です。ゼロの線より右なら、良い応答のほうが出やすいという意味
# です。選好学習は矢印を右へ動かします。*

# %%
report(run)

# %% [markdown]
# ## 6 · Use it
#
# Ask it:
#
# *日本語: 質問してみます。*

# %%
answer(run, "機械学習とは何ですか。", "Pythonの関数の利点は？");

# %% [markdown]
# Or as a conversation:
#
# *日本語: 会話もできます。*

# %%
from newllm_lib.colab.chat_widget import chat

conversation = chat(run, first="データサイエンスを学ぶと何の役に立ちますか。")

# %% [markdown]
# The folder `best` holds the adapter as PEFT saves it. This is all it takes elsewhere (`import newllm_lib.models` only
# if the base is one of this library's models):
#
# *日本語: フォルダー `best` は PEFT 形式のアダプターです。ほかの環境でも次のコードで使えます（`import newllm_lib.models` が要るのは、
# 元のモデルがこのライブラリのモデルの場合だけです）。*

# %%
import newllm_lib.models  # noqa: F401
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

own_base = run.path / "base"
base_model = AutoModelForCausalLM.from_pretrained(own_base if own_base.is_dir() else settings.recipe().base)
tokenizer = AutoTokenizer.from_pretrained(run.best)
model = PeftModel.from_pretrained(base_model, run.best) if settings.recipe().lora_rank else base_model
turn = [{"role": "user", "content": "AIとは何ですか。"}]
inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0], skip_special_tokens=True))

# %% [markdown]
# One ordinary model with the adapter merged in, as safetensors, with a card:
#
# *日本語: アダプターを統合した普通のモデルを、モデルカード付きの safetensors で書き出します。*

# %%
from newllm_lib.export.folder import export

merged = export(run)

# %% [markdown]
# ## 7 · Keep it, give it away, go on
#
# To Google Drive, if the form says so, with all that is needed to continue; one file to download; and how to give the
# model away and what comes next.
#
# *日本語: フォームで選んであれば、学習を再開できる形で Google ドライブに保存します。続いて、ダウンロード用のファイル、モデルの
# 公開のしかた、次のステップを表示します。*

# %%
#@build cell keep

# %% [markdown]
# ## 8 · Experiments
#
# *Run all* passes over these: each trains for about as long as section 4. Set `experiments = True` and run the cells
# that you want.
#
# *日本語: 「すべてのセルを実行」では飛ばされます。どれも 4 と同じくらい時間がかかります。`experiments = True` にして、試したいセルだけ
# 実行してください。*

# %%
experiments = False

# %% [markdown]
# ### Beta and learning rate
#
# *Beta* is the price of moving away from the base: with a small beta the model may move far, perhaps into nonsense. Each
# pair of values is a run of its own, kept and not repeated. Try more values when you have the time.
#
# *日本語: beta と学習率を変えて比べます。beta が小さいほど元のモデルから離れられますが、応答が崩れることもあります。値の組ごとに
# 1 つの run になり、終わった run は学習し直しません。*

# %%
rate = settings.recipe().learning_rate
if experiments:
    rows = sweep(settings, betas=(0.05, 0.3), learning_rates=(10 * rate,), eval_pairs=100)

# %% [markdown]
# ### Your own pairs
#
# A line each: `prompt`, `chosen`, `rejected` (texts, or lists of messages). Equal or empty answers are left out and counted,
# and so is what does not fit; prompts are never in both splits. Here a file is written and read; use yours instead.
#
# *日本語: 自分のペアは、1 行に 1 つの JSON（`prompt`、`chosen`、`rejected`）で書きます。同じ応答、空の応答、長すぎるペアは除かれ、
# 件数が表示されます。ここでは例のファイルを書いて読みます。自分のファイルに置き換えてください。*

# %%
import json
from pathlib import Path

mine = [{"prompt": f"{n}と{n}の和は？", "chosen": f"{2 * n}です。", "rejected": "数えてみてください。"} for n in range(60)]
lines = [json.dumps(row, ensure_ascii=False) for row in [*mine, mine[0], {**mine[1], "rejected": mine[1]["chosen"]}]]
file = Path("data/my_pairs.jsonl")
file.parent.mkdir(exist_ok=True)
file.write_text("\n".join(lines) + "\n", encoding="utf-8")
if experiments:
    wait(train(settings, data=str(file)))

# %% [markdown]
# ### Short of memory
#
# There is nothing to do: where memory runs out, fewer pairs are computed at a time, and the batch stays the same. If even
# one pair does not fit, there are two more ways: compute intermediate results twice instead of keeping them (*gradient
# checkpointing*), or shorter sequences. About how much each needs here:
#
# *日本語: メモリが足りなくなると、一度に処理するペアを自動で減らします（バッチサイズは変わりません）。1 ペアも入らなければ、活性値の
# 再計算（gradient checkpointing）や短い系列を使います。それぞれに必要なメモリのおおよその量を表示します。*

# %%
from newllm_lib.device import probe
from newllm_lib.training.estimate import estimate

less = {"micro_batch_size": 1}
for more in ({}, less, {**less, "gradient_checkpointing": "on"}, {**less, "max_seq_length": 64}):
    need = estimate(settings.recipe(**more), probe())["memory_estimate_gib"]
    print(more or "as in the form", "about", need, "GiB; train(settings, **that) trains so")

# %% [markdown]
# ### It does not learn
#
# A margin that stays where it was: the learning rate is too low (1e-5 is *more* than 5e-6) or there are too few steps.
# Answers that fall apart: too high, or beta too low. And a base without the language: teach it first.
#
# *日本語: マージンが変わらないのは、学習率が低すぎるか（1e-5 は 5e-6 より大きい値です）、ステップが少なすぎるからです。応答が崩れる
# のは、学習率が高すぎるか、beta が小さすぎるからです。元のモデルがその言語を知らなければ、先に良い応答を学習させます。*

# %%
if experiments:
    taught = train(settings, sft_warm_start=1, learning_rate=10 * rate)
    wait(taught)
    report(taught)
