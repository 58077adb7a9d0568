# %% [markdown]
# # New-LLM 4 · DPO with LoRA: teaching a model to prefer
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks/04_dpo_lora.ipynb)
#
# A language model says what is likely, not what is helpful. **Direct Preference Optimization** shows it pairs of answers
# to the same question, a better and a worse one, and raises the probability of the better one relative to the worse
# ([Rafailov et al., 2023](https://arxiv.org/abs/2305.18290)). **LoRA** leaves the model's weights as they are and trains
# small matrices beside them. So the whole thing fits a free T4, and the model without the matrices is there to compare with.
#
# Sections 1 to 8 are the quick path: run them from the top (*Runtime → Change runtime type → T4 GPU*, then *Run all*).
# Section 9 is the experiment path, which *Run all* passes over: other settings, your own pairs, what to do when something
# goes wrong.
#
# *日本語: 選好学習（DPO）のノートブックです。同じプロンプトへの良い応答と悪い応答のペアを示し、良い応答の確率を相対的に上げます。
# LoRA は元の重みを固定し、横に置いた小さな行列だけを学習します。1〜8 は上から実行するだけの短いコース、9 は実験コースで、「すべてのセルを実行」では飛ばされます。
# 「ランタイム」→「ランタイムのタイプを変更」で T4 GPU を選び、「すべてのセルを実行」してください。*

# %% [markdown]
# ## What counts as success
#
# Everything is measured on **held-out pairs about facts that training never mentions**, before and after:
#
# - **accuracy**: share of the pairs whose better answer the model finds more probable; **margin**: by how much, in *nats*
#   (0.69 nats more: twice as probable). Both have 95 % intervals, the range in which the true value probably lies: only where
#   the intervals before and after do not overlap was something learned.
# - The **loss** starts at 0.693 (log 2: no preference yet) and falls. At the learning rate of this project's first guide, 5e-6,
#   it hardly moves in one epoch, and that is shown as it is.
# - **KL** (the KL divergence, a distance between two models): how far the answers have moved from those of the base model.
#   A run whose answers become empty or repeat themselves is stopped and not called a success, whatever its accuracy.
#
# *日本語: 学習に一度も出てこない事実についてのペアで、学習の前後を比べます。正解率は、良い応答のほうが確率の高いペアの割合、
# マージンはその差です（単位は nat。0.69 nat で確率が 2 倍）。前後の 95 % 信頼区間が重ならなければ、学習の効果があったといえます。損失は 0.693（まだ好みがない状態）
# から始まって下がります。旧ガイドの学習率 5e-6 では、1 エポックでほとんど動きません。KL（KL ダイバージェンス）は元のモデルからの距離です。応答が空になったり繰り返したりする run は止められ、成功とは見なされません。*

# %% [markdown]
# ## 1 · Install
#
# Gets the project and adds the packages that this machine lacks (`trl` on Colab); torch and numpy stay as they are.
#
# *日本語: プロジェクトを取得し、足りないもの（Colab では `trl`）だけを入れます（torch と numpy は変えません）。*

# %%
#@build install

# %% [markdown]
# A package that was replaced while this notebook ran must be loaded anew. The next cell looks, and says what to do.
#
# *日本語: 読み込まれたライブラリが、インストールされた版と同じか確かめます。違えば、どうすればよいかを表示します。*

# %%
from newllm_lib.colab.preferences import answer, look, packages, report, sweep

packages();

# %% [markdown]
# ## 2 · Settings
#
# The defaults are those of this project's first guide. *Start from* is the model that is trained, the *base model*. DialoGPT
# was trained on English, and its vocabulary spends about 1.5 tokens on a Japanese character: 128 tokens hold some 85
# characters. For the Japanese pairs a Japanese model (rinna, open-calm, sarashina) is the better choice. A model that knows
# no Japanese does not learn it from preferences, but *Epochs of learning the preferred answers first* can teach it some.
# One of your own runs (`new_llm_demo`, say) is a base like any other.
#
# *Hold a model of the hub in 4 bits* makes a larger model fit: its weights take a quarter of the memory. *System prompt* is
# what the chat of section 6 tells the model before your first turn. *Tracker* also sends the curves to a service.
#
# *日本語: 空欄のままなら旧ガイドの設定です。「元のモデル」（Start from）の DialoGPT は英語のモデルで、128 トークンに日本語は 85 文字ほどしか
# 入りません。日本語のペアには日本語のモデル（rinna、open-calm、sarashina）を選んでください。日本語を知らないモデルは、選好学習では日本語を
# 覚えません。「先に良い答えを学ぶエポック数」で少し教えることはできます。自分の run（`new_llm_demo` など）も使えます。4 ビットで読み込むと、
# 重みのメモリが約 4 分の 1 になり、より大きなモデルが入ります。「システムプロンプト」は、6 のチャットで最初に与える指示です。*

# %%
#@build form DPO

# %% [markdown]
# ### See the model
#
# LoRA on a very small model: the weights stay as they are, and beside each chosen matrix two thin ones are trained
# (`lora_A`, `lora_B`); `r`, the *rank*, is how thin. **Exercise**: set `r` to 1 and to 32: how many parameters are trained, and what happens to the
# margin if you type that as *Rank of the LoRA adapters*?
#
# *日本語: 小さなモデルに LoRA を付けます。元の重みは固定し、細い行列（`lora_A` と `lora_B`）だけを学習します。`r`（ランク）はその細さです。練習: `r` を
# 1 と 32 にして、学習するパラメータ数を比べてください。その値をフォームの「LoRA のランク」に入れると、マージンはどうなるでしょうか。*

# %%
#@build cell model_lora

# %% [markdown]
# ## 3 · The pairs
#
# Made from 101 facts on AI, programming and data science and 21 question forms. Rejected answers are vague, off topic,
# wrong, curt or repetitive, and of the same length as the good ones. Could the two be told apart without understanding
# them? The cell tries it: a guess by length or by the first words should be right in about 50 %. Single words do give vague
# and curt answers away, but not an answer that is true of another term.
#
# *日本語: AI、プログラミング、データサイエンスの 101 の事実と 21 の質問の形から作ったペアです。悪い応答は、あいまい、話題違い、誤り、
# そっけない、繰り返しのどれかで、長さは良い応答と同じです。内容を理解せずに見分けられないことも確かめます（長さや最初の語だけなら
# 正解は約 50 % のはずです。あいまいな応答やそっけない応答は、使われる単語から分かることがあります）。*

# %%
pairs = look(settings)

# %% [markdown]
# ## 4 · Train
#
# Training runs in a process of its own: it goes on if you close this tab. The **Stop** button saves first, and running the
# cell again continues. Blue is training, orange the *held-out* pairs (set aside, never trained on) with their 95 % intervals.
# The axes are never so narrow that a tiny difference looks large: a flat line means that nothing was learned.
#
# *日本語: 学習は別のプロセスで進み、タブを閉じても続きます。停止ボタンは保存してから止め、セルを再実行すると続きから再開します。
# 青が学習、オレンジが学習に使わない検証用のペア（95 % 信頼区間つき）です。軸の範囲は一定より狭くならないので、線が平らなら、何も
# 学習されていません。*

# %%
#@build cell start

# %% [markdown]
# The cells below need the trained model, so this one waits for it. ■ (stop the cell) ends the waiting, not the training.
#
# *日本語: 学習が終わるまで待ちます。■（セルの停止）を押すと待つのをやめるだけで、学習は続きます。*

# %%
#@build cell wait

# %% [markdown]
# ## 5 · Result
#
# Each arrow is a held-out pair: from its margin before training to the one after. Right of the zero line the better
# answer is the likelier one. Preference learning moves arrows to the right. Then the figures before and after, by kind of
# rejected answer, and what the model says.
#
# *日本語: 矢印は、学習に使っていないペアのマージンの、学習前 → 学習後です。ゼロの線より右なら、良い応答のほうが出やすいという意味
# です。選好学習は矢印を右へ動かします。続いて、学習前と後の数値（悪い応答の種類ごと）と、モデルの応答です。*

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

conversation = chat(run, first="データサイエンスを学ぶと何の役に立ちますか。", system=settings.extra["system"])

# %% [markdown]
# The folder `best` holds the adapter in the format of PEFT, the library that made it. These lines load it, here or elsewhere
# (`import newllm_lib.models` is needed only if the base is one of this library's models):
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
# The adapter added to the weights (*merged*) gives one ordinary model. This writes it as a folder, with a card that says what
# it is:
#
# *日本語: アダプターを重みに足し込んだ（統合した）普通のモデルを、モデルカード付きのフォルダーに書き出します。*

# %%
from newllm_lib.export.folder import export

merged = export(run)

# %% [markdown]
# ## 7 · Give it away
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
# ## 8 · Keep it, and go on
#
# A copy on Google Drive, if the form says so, with all that is needed to continue training; one file to download; and
# what comes next.
#
# *日本語: フォームで選んであれば、学習を再開できる形で Google ドライブに保存します。続いて、ダウンロード用のファイルと、次のステップを
# 表示します。*

# %%
#@build cell keep

# %% [markdown]
# ## 9 · Experiments
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
# combination of values is a run of its own; one that is finished is not trained again. Try more values when you have the time.
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
# One pair a line: `prompt`, `chosen`, `rejected` (texts, or lists of messages). Pairs of equal or empty answers are left out
# and counted, and so are those that are too long. No prompt is both in the training pairs and in the held-out ones. Here a
# file is written and read; use yours instead.
#
# *日本語: 自分のペアは、1 行に 1 つの JSON（`prompt`、`chosen`、`rejected`）で書きます。同じ応答、空の応答、長すぎるペアは除かれ、
# 件数が表示されます。同じプロンプトが学習用と検証用の両方に入ることはありません。ここでは例のファイルを書いて読みます。自分のファイルに置き換えてください。*

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
# one pair does not fit, there are three more ways: compute intermediate results twice instead of keeping them (*gradient
# checkpointing*), shorter sequences, or a model held in 4 bits (the form). About how much the first two need here:
#
# *日本語: メモリが足りなくなると、一度に処理するペアを自動で減らします（バッチサイズは変わりません）。1 ペアも入らなければ、活性値の
# 再計算（gradient checkpointing）、短い系列、または 4 ビットでの読み込み（フォーム）を使います。最初の 2 つに必要なメモリのおおよその量を表示します。*

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
# If the margin stays where it was, the learning rate is too low (1e-5 is *more* than 5e-6) or there are too few steps. If the
# answers fall apart, the learning rate is too high, or beta too low. If the base does not know the language, teach it the
# preferred answers first, as here:
#
# *日本語: マージンが変わらないのは、学習率が低すぎるか（1e-5 は 5e-6 より大きい値です）、ステップが少なすぎるからです。応答が崩れる
# のは、学習率が高すぎるか、beta が小さすぎるからです。元のモデルがその言語を知らなければ、ここのように先に良い応答を学習させます。*

# %%
if experiments:
    taught = train(settings, sft_warm_start=1, learning_rate=10 * rate)
    wait(taught)
    report(taught)
