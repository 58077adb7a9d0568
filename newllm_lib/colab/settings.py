"""The forms of the notebooks: which fields each shows, in English and Japanese, and its size presets.

A new notebook adds a `Form` here; `notebooks/build.py` puts its text into the notebook.
"""

from __future__ import annotations

from newllm_lib.colab.forms import Field, Form

# Labels are shared: the same key reads the same in every notebook.
LABELS = {
    "epochs": ("Epochs: passes over the training text", "エポック数（学習データを何周するか）"),
    "batch_size": (
        "Sequences a step (the learning rate follows by square root)",
        "バッチサイズ（学習率も連動）",
    ),
    "max_seq_length": ("Tokens in a sequence", "系列長（トークン数）"),
    "max_samples": (
        "Use only this many documents (empty: as the recipe says; None: all)",
        "使う文書数の上限（None で全部）",
    ),
    "data_dir": (
        "Your own text: a folder with train.txt (empty: none)",
        "自分のデータのフォルダー（空ならなし）",
    ),
    "protocol": (
        "Protocol (seed: the original's 1,000-word vocabulary and metric)",
        "プロトコル（seed は旧版の 1,000 語の語彙と指標）",
    ),
    "seed": ("Random seed", "乱数シード"),
    "num_layers": ("Layers (only where nothing is started from)", "層の数（最初から学習する場合のみ）"),
    "patience": (
        "Stop after so many evaluations without a better one",
        "改善がない評価が何回続いたら止めるか",
    ),
    "report_to": (
        "Tracker: also send the curves there (it needs its package, and wandb a login)",
        "学習曲線の送り先（パッケージが必要。wandb はログインも）",
    ),
    "max_steps": ("Stop after this many steps (empty: all epochs)", "ステップ数の上限（空欄なら全エポック）"),
    "lora_rank": (
        "Rank of LoRA adapters (0: train all weights; needs a start)",
        "LoRA のランク（0 なら全重みを学習）",
    ),
}

# The same text for every notebook. A run must not change its sizes because Colab hands out another GPU today:
# left alone they are the recipe's own on every GPU.
GPU = Field(
    "gpu",
    "Sizes for this GPU (empty: the recipe's own, smaller on a CPU; larger GPUs: more in the same time)",
    "この GPU に合う大きさ（空欄ならレシピのまま。CPU では小さくなります）",
    "",
    ("", "T4", "L4", "A100", "H100"),
)

# Three that fit a T4: two that know English, and one that knows Japanese.
HUB_MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "sbintuitions/sarashina2.2-0.5b-instruct-v0.1",
)
START = Field(
    "from_run",
    "Start from (empty: a new New-LLM, or what the data's recipe says; none: always a new one; a run's name; "
    "a model of the Hugging Face hub as owner/name)",
    "何から始めるか（空欄なら新しい New-LLM かレシピの指定、none なら必ず新しい New-LLM、"
    "run の名前、または Hub のモデル owner/name）",
    choices=("", "none", *HUB_MODELS),
    free=True,
)
FOUR_BITS = Field(
    "four_bits",
    "Hold a model of the hub in 4 bits (a quarter of the memory; needs bitsandbytes, trains adapters)",
    "Hub のモデルを 4 ビットで読み込む（メモリは約 4 分の 1。bitsandbytes が必要、LoRA で学習）",
    False,
    means={"load_in": "4bit"},
)
SYSTEM = Field(
    "system",
    "System prompt: what the chat below tells the model before your first turn (empty: nothing)",
    "システムプロンプト（下のチャットで最初に与える指示。空欄ならなし）",
    "",
)

SAVE_TO_DRIVE = Field(
    "save_to_drive",
    "Keep a copy on Google Drive while training, and continue from it in a new session",
    "学習中に Google ドライブへ複製し、次のセッションで続きから再開",
    True,
)


def _fields(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, *LABELS[name]) for name in names)


_LAYERS = {
    "T4": {},
    "L4": {"num_layers": 2},
    "A100": {"num_layers": 4},
    "H100": {"num_layers": 4, "hidden_size": 384, "context_dim": 384, "mlp_size": 1536},
}

PRETRAINING = Form(
    name="PRETRAINING",
    recipe="tinystories",
    fields=(
        Field(
            "recipe",
            "Data: tinystories, demo (human chats, needs no hub) or wikitext (the guide's job)",
            "学習データ",
            "tinystories",
            ("tinystories", "demo", "wikitext"),
        ),
        GPU,
        Field(
            "size",
            "Size of both models (standard: the GPU's)",
            "モデルの大きさ",
            "standard",
            ("standard", "small", "large"),
        ),
        *_fields("epochs", "batch_size", "max_seq_length", "max_samples", "data_dir", "protocol", "seed"),
        SAVE_TO_DRIVE,
    ),
    presets={
        "standard": {},
        "small": {"num_layers": 2, "hidden_size": 128, "context_dim": 128, "mlp_size": 384, "num_heads": 2},
        "large": {"num_layers": 6, "hidden_size": 384, "context_dim": 384, "mlp_size": 1536, "num_heads": 6},
    },
    gpus={
        "T4": {},
        "L4": {"num_layers": 6},
        "A100": {
            "num_layers": 6,
            "hidden_size": 384,
            "context_dim": 384,
            "mlp_size": 1536,
            "num_heads": 6,
            "dropout": 0.3,
        },
        "H100": {
            "num_layers": 8,
            "hidden_size": 512,
            "context_dim": 512,
            "mlp_size": 2048,
            "num_heads": 8,
            "dropout": 0.3,
        },
    },
)

# Japanese models that fit a T4 know the language of the pairs; DialoGPT knows English.
BASES = (
    "microsoft/DialoGPT-small",
    "rinna/japanese-gpt2-small",
    "rinna/japanese-gpt2-medium",
    "cyberagent/open-calm-small",
    "sbintuitions/sarashina2.2-0.5b-instruct-v0.1",
)

DPO = Form(
    name="DPO",
    recipe="dpo",
    fields=(
        Field(
            "base",
            "Start from (the base model: one of the Hugging Face hub, as owner/name, or one of your runs)",
            "元のモデル（Hub のモデル owner/name、または自分の run の名前）",
            choices=BASES,
            free=True,
        ),
        Field(
            "data",
            "Pairs: preferences_ja, hh_rlhf, ultrafeedback, a hub id, or your own .jsonl",
            "データ",
            choices=("preferences_ja", "hh_rlhf", "ultrafeedback"),
            free=True,
        ),
        GPU,
        *_fields("epochs"),
        Field("max_samples", "Pairs to train on (None: all)", "学習に使うペアの数"),
        Field("batch_size", "Pairs a step", "1 ステップのペア数"),
        Field("learning_rate", "Learning rate", "学習率"),
        Field("beta", "Beta: how dear it is to move away from the base", "beta（元のモデルから離れにくさ）"),
        Field("lora_rank", "Rank of the LoRA adapters (0: train all weights)", "LoRA のランク"),
        Field(
            "sft_warm_start", "Epochs of learning the preferred answers first", "先に良い答えを学ぶエポック数"
        ),
        FOUR_BITS,
        *_fields("max_seq_length", "seed", "report_to"),
        SYSTEM,
        SAVE_TO_DRIVE,
    ),
    gpus={
        "T4": {},
        "L4": {"max_seq_length": 256},
        "A100": {"max_seq_length": 512, "epochs": 2},
        "H100": {"max_seq_length": 512, "epochs": 3},
    },
)

DIALOGUE = Form(
    name="DIALOGUE",
    recipe="dolly",
    fields=(
        Field(
            "recipe",
            "Data: a step of the ladder",
            "学習データ",
            "dolly",
            ("dolly", "dailydialog", "hh_rlhf", "code_alpaca", "dolly_ja", "alpaca_ja"),
        ),
        GPU,
        START,
        *_fields("lora_rank"),
        FOUR_BITS,
        *_fields(
            "num_layers",
            "epochs",
            "patience",
            "batch_size",
            "max_seq_length",
            "max_samples",
            "data_dir",
            "seed",
            "report_to",
        ),
        SYSTEM,
        SAVE_TO_DRIVE,
    ),
    gpus=_LAYERS,
)

ULTRACHAT = Form(
    name="ULTRACHAT",
    recipe="ultrachat",
    fields=(
        Field("size", "Dialogues", "対話の数", "100k", ("10k", "100k", "all")),
        Field(
            "recipe",
            "Data: the whole set, or its filtered part",
            "全体か、選別された 20 万件か",
            "ultrachat",
            ("ultrachat", "ultrachat_200k"),
        ),
        GPU,
        START,
        FOUR_BITS,
        *_fields("num_layers", "epochs", "batch_size", "max_seq_length", "data_dir", "seed", "report_to"),
        SYSTEM,
        SAVE_TO_DRIVE,
    ),
    presets={
        "10k": {"max_samples": 10_000, "epochs": 4},
        "100k": {"max_samples": 100_000, "epochs": 4},
        "all": {},
    },
    gpus=_LAYERS,
)


def _preset_for_this_machine(values: dict) -> str:
    # estimates load torch, and a form is often only shown
    from newllm_lib.colab.phase7 import for_this_machine

    return for_this_machine(values)


PHASE7 = Form(
    name="PHASE7",
    recipe="phase7_small",
    choose=_preset_for_this_machine,
    fields=(
        Field(
            "recipe",
            "Preset: 25M to 1.5B parameters; auto: what makes the most of the hours on this GPU",
            "モデルの大きさ（auto: この GPU と時間に合うもの）",
            "auto",
            ("auto", "phase7_1.5b", "phase7_0.7b", "phase7_100m", "phase7_small", "phase8_small"),
        ),
        Field(
            "hours", "Hours that you have, for the estimate", "使える時間（見積もり用）", 3.0, minimum=0.01
        ),
        Field(
            "weights",
            "Data recipe, such as ultrachat_200k=2,dolly=1 (empty: the preset's own data, or the sliders "
            "below)",
            "データの配合（空ならプリセットのデータか下のスライダー）",
            "",
        ),
        Field("mix_documents", "Documents in that mix", "配合する文書数", 20_000, minimum=20),
        *_fields("max_steps", "max_samples", "data_dir", "seed"),
        SAVE_TO_DRIVE,
    ),
)

FORMS = {form.name: form for form in (PRETRAINING, DIALOGUE, ULTRACHAT, DPO, PHASE7)}
