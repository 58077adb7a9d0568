"""Every choice of a run: one dataclass, from which YAML files, flags, forms and records come."""

from __future__ import annotations

import os
from dataclasses import Field, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from newllm_lib import __version__
from newllm_lib.device import KINDS
from newllm_lib.recipe.files import read_yaml
from newllm_lib.recipe.recorded import as_of_today
from newllm_lib.recipe.values import checked

_TRAIN = ("train",)
_LEARNS_TEXT = ("train", "sft")
_PAIRS = ("dpo", "orpo", "kto", "reward")
_FROM_BASE = ("sft", *_PAIRS, "grpo")
# A TinyGPT2 is matched to the parameters that the other's sizes give.
_SIZES_NEW_LLM, _SIZES_PHASE7 = ("new_llm", "tiny_gpt2"), ("phase7", "tiny_gpt2")
_ABOUT = dict(
    choices=(), identity=True, kept=False, minimum=None, maximum=None, flag=None, tasks=(), models=()
)


def key(default: object, help: str, section: str, **about: object) -> Any:
    """A recipe key.

    Args:
        about: `choices`, `minimum`, `maximum` of its values; and
            identity: two runs that differ in it are different runs (resume refuses to mix them).
            kept: where it is not typed, a run goes on with its own, whatever the recipe's file says by now.
            flag: another name of its flag, where the key's own would be clumsy or is no Python name
            (`--from`). tasks, models: where it does anything (empty: everywhere); typed elsewhere it is
            refused.
    """
    return field(default=default, metadata={**_ABOUT, "help": help, "section": section, **about})


_run, _data, _training, _lora = (partial(key, section=name) for name in ("run", "data", "training", "lora"))
_scale = partial(key, section="scale", identity=False, tasks=_TRAIN)
_model = partial(key, section="model", tasks=_TRAIN)
_phase7 = partial(key, section="phase7", tasks=_TRAIN, models=("phase7",))
_teacher = partial(key, section="training", tasks=_TRAIN, models=("new_llm",))
_base = partial(key, section="base", tasks=_FROM_BASE)
_answers = partial(key, section="base", tasks=("sft",))
_preference = partial(key, section="preference", tasks=(*_PAIRS, "grpo"))


def does_something(key: Field, task: str, model: str) -> bool:
    """Whether training `model` by `task` depends on the key, a field of `Recipe`."""
    tasks, models = key.metadata["tasks"], key.metadata["models"]
    return (not tasks or task in tasks) and (not models or model in models)


@dataclass
class Recipe:
    """Every choice of a run. Lengths in tokens, sizes in channels, batch sizes in sequences per step."""

    # --- What a run is called, where it lies, how often it speaks and saves ------------------------------

    recipe: str = _run("custom", "the recipe's name")
    sized_for: str = _run("auto", "device kind whose preset is used", choices=("auto", *KINDS))
    logging_steps: int = _run(50, "optimizer steps between two lines of the log", identity=False, minimum=1)
    save_minutes: float = _run(
        5.0, "save at least this often (also at each epoch's end)", identity=False, minimum=0
    )
    save_steps: int | None = _run(None, "also save every so many steps", identity=False, minimum=1)
    log_style: str = _run(
        "epochs",
        "epochs (progress and time left), or steps (the Phase 7 guide's line for each logged step)",
        choices=("epochs", "steps"),
        identity=False,
        tasks=_TRAIN,
    )
    keep_checkpoints: int = _run(2, "checkpoints kept (besides best and last)", identity=False, minimum=1)
    sample_tokens: int = _run(
        24,
        "tokens of a sample answer at every evaluation (0: none)",
        identity=False,
        minimum=0,
        tasks=_LEARNS_TEXT,
    )
    report_to: str = _run(
        "none",
        "also report to one of these",
        identity=False,
        choices=("none", "tensorboard", "wandb", "trackio"),
    )
    output_dir: str | None = _run(None, "folder of this run (default: checkpoints/<name>)", identity=False)
    run_name: str = _run("auto", "name of the run; made from what was chosen", identity=False)
    resume: str = _run(
        "auto", "auto (continue if stopped), last (only continue), never, or a checkpoint", identity=False
    )
    mirror_dir: str | None = _run(
        None,
        "folder to copy the run to while it trains (on Drive, say), or hf://OWNER/NAME on the hub; a copy "
        "that is ahead is fetched first",
        identity=False,
    )
    force: bool = _run(False, "train although another run uses this GPU", identity=False)

    # --- On how many GPUs; a batch stays what `batch_size` says -------------------------------------------

    num_gpus: int | str = _scale(
        1,
        "GPUs of this machine to train on, or auto: all of them (where there is none: so many processes)",
        minimum=1,
    )
    distribution: str = _scale(
        "auto",
        "with several: ddp (a whole model on each), fsdp2 (weights, gradients and optimizer state are cut), "
        "or auto: ddp, and fsdp2 for a Phase 7 model that the estimate says is too large",
        choices=("auto", "ddp", "fsdp2"),
    )

    # --- What is read, and how it becomes tokens ----------------------------------------------------------

    data: str = _data(
        "demo",
        "a source by name (demo, wikitext), a file or folder of your own, or a Hugging Face data set id",
    )
    data_dir: str | None = _data(  # no identity: a folder may move; what it holds is compared by content
        None,
        "folder with train.*, validation.*, test.* (.txt .jsonl .json .csv .parquet) to use instead",
        identity=False,
    )
    encoding: str | None = _data(
        None,
        "of files of your own that are not UTF-8 (cp932, euc-jp, gb18030, cp1252, utf-16 …)",
        identity=False,
    )
    documents: str = _data(
        "auto",
        "what of a text file of your own is one document: auto (markers such as <|endoftext|>, form feeds, "
        "blank lines or lines, as it is found and said), lines, paragraphs, file, or separator",
        choices=("auto", "lines", "paragraphs", "file", "separator"),
        identity=False,
        tasks=_TRAIN,
    )
    max_samples: int | None = _data(None, "use only this many documents of the training split", minimum=1)
    streaming: str = _data(
        "auto",
        "prepare the data while training: on, off, or by its size (300 MB of .jsonl or .parquet are large)",
        choices=("auto", "on", "off"),
        tasks=_TRAIN,
    )
    protocol: str = _data(
        "standard", "seed: the original's 1,000 words and metric", choices=("standard", "seed"), tasks=_TRAIN
    )
    tokenizer: str = _data(
        "bpe", "bpe (trained on the data), words, gpt2, or a folder or hub id of a tokenizer", tasks=_TRAIN
    )
    vocab_size: int = _data(4096, "vocabulary of a tokenizer that is trained here", minimum=300, tasks=_TRAIN)
    template: str = _data(
        "chat",
        "how turns are written: chat, or instruction (the original's Instruction: … Context: … Response: …)",
        choices=("chat", "instruction"),
        tasks=_TRAIN,
    )
    max_seq_length: int = _data(128, "tokens in a training block", minimum=2)
    loss_on: str = _data(
        "everything",
        "what is learned and measured of a dialogue: the assistant's answers, or everything",
        choices=("answers", "everything"),
        tasks=_LEARNS_TEXT,
    )

    # --- Which model, and its sizes in channels -----------------------------------------------------------

    model: str = _model("new_llm", "which model", choices=("new_llm", "tiny_gpt2", "phase7"))
    match: str = _model(
        "new_llm",
        "TinyGPT2: the model whose stored parameters it gets, in the sizes given here",
        choices=("new_llm", "phase7"),
        models=("tiny_gpt2",),
    )
    recurrence: str = _model(
        "parallel",
        "New-LLM's recurrence: parallel over time, or the original's sequential one",
        choices=("parallel", "sequential"),
        models=_SIZES_NEW_LLM,
    )
    time_scales: str = _model(
        "even",
        "how long channels of New-LLM's context vector remember at first: even (4 to 150 tokens), or multi "
        "(groups from one to thousands of tokens)",
        choices=("even", "multi"),
        models=("new_llm",),
    )
    num_layers: int = _model(
        4, "blocks (sequential recurrence: depth of the per-token MLP)", minimum=1, maximum=1000
    )
    hidden_size: int = _model(256, "channels of the residual stream (TinyGPT2 chooses its own)", minimum=1)
    context_dim: int = _model(256, "size of the context vector each block carries", minimum=1)
    mlp_size: int = _model(1024, "inner channels of the token MLP", minimum=1)
    num_heads: int = _model(
        4, "attention heads (TinyGPT2, Phase 7)", minimum=1, models=("tiny_gpt2", "phase7")
    )
    dropout: float = _model(0.1, "dropout on the residual branches", minimum=0.0, maximum=0.9)

    # --- Phase 7's parts; its state-space branch has New-LLM's key context_dim ----------------------------

    attention: str = _phase7(
        "hyperbolic",
        "to the last attention_window tokens by distance in the Poincaré ball (hyperbolic) or by the usual "
        "dot product (dot); linear (Phase 8): to all tokens by products of hyperbolic features, in linear "
        "time",
        choices=("hyperbolic", "dot", "linear"),
    )
    attention_window: int = _phase7(128, "tokens that attention sees, the token itself included", minimum=1)
    flash_attention: bool = _phase7(
        True, "never hold all attention scores (false: plain torch, time x time each)", identity=False
    )
    curvature_schedule: str = _phase7(
        "linear",
        "how a factor on the learned curvatures rises to 1 in the first half of training (off: it is 1 at "
        "once)",
        choices=("linear", "cosine", "off"),
    )
    ar_ssm: bool = _phase7(
        True, "the state-space branch, and the gate between it and attention", models=_SIZES_PHASE7
    )
    ssm_ranks: int = _phase7(
        16,
        "groups of its channels that each token opens by gates (must divide context_dim)",
        minimum=1,
        models=_SIZES_PHASE7,
    )
    embedding: str = _phase7(
        "htt",
        "embedding and head: htt, two small cores with phases (a tensor train), or dense",
        choices=("htt", "dense"),
        models=_SIZES_PHASE7,
    )
    htt_rank: int = _phase7(
        64, "rank of the cores (with their phases they have twice that)", minimum=1, models=_SIZES_PHASE7
    )

    # --- Which weights training starts from ---------------------------------------------------------------

    from_run: str | None = key(
        None,
        "start from this run's best weights, with its tokenizer and its sizes: a run, its folder, or a "
        "recipe whose run is taken (none: from scratch)",
        "start",
        flag="from",
        tasks=_TRAIN,
    )

    # --- How it is trained; batch sizes are in sequences per optimizer step -------------------------------

    seed: int = _training(0, "random seed: weights, dropout and data order", minimum=0, maximum=2**32 - 1)
    epochs: float = _training(6.0, "passes over the training split", minimum=0.0001)
    max_steps: int | None = _training(None, "stop after this many optimizer steps", minimum=1)
    batch_size: int = _training(128, "sequences per optimizer step, over all GPUs", minimum=1, maximum=10**6)
    micro_batch_size: int | str = _training(
        "auto", "sequences at a time on one GPU (more are accumulated)", identity=False, minimum=1
    )
    optimizer: str = _training(
        "adamw",
        "adamw, or muon for the matrices inside the blocks (AdamW for the rest); adafactor (second moment "
        "factored, momentum in few bits), adamw8bit and adamw4bit (torchao) need less memory",
        choices=("adamw", "muon", "adafactor", "adamw8bit", "adamw4bit"),
    )
    learning_rate: float = _training(6e-3, "peak learning rate", minimum=0.0)
    learning_rate_batch_size: int | None = _training(
        None,
        "batch size the learning rate was chosen for: another batch size scales it by the square root",
        minimum=1,
    )
    muon_learning_rate: float = _training(0.02, "Muon's peak learning rate (optimizer: muon)", minimum=0.0)
    warmup_steps: float = _training(
        100, "steps of linear warm-up (below 1: a share of all steps)", minimum=0.0
    )
    schedule: str = _training(
        "cosine",
        "how the learning rate falls (wsd: not before half of the steps, then linearly)",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    min_learning_rate_ratio: float = _training(0.05, "last learning rate as a share of the peak", minimum=0.0)
    weight_decay: float = _training(0.1, "weight decay of matrices", minimum=0.0)
    adam_beta2: float = _training(0.98, "AdamW's second beta", minimum=0.0, maximum=0.9999)
    max_grad_norm: float = _training(1.0, "clip gradients to this norm (0: never)", minimum=0.0)
    patience: int | None = _training(None, "stop after this many evaluations without a better one", minimum=1)
    carry_state: bool = _training(
        False,
        "New-LLM, Phase 7: start each block with the state that the text's last block ended with (blocks in "
        "order)",
        models=("new_llm", "phase7"),
        tasks=_TRAIN,
    )
    evals_per_epoch: int | str = _training(
        "auto",
        "evaluations on the validation split in each epoch, or auto: so many, or one in so many epochs, that "
        "a twentieth as much text is evaluated as is trained on",
        kept=True,
        minimum=1,
    )
    eval_tokens: int | None = _training(
        None,
        "evaluate this much of the validation split, always the same documents (none: all); the figures at "
        "the end are of all",
        kept=True,
        minimum=256,
        tasks=_TRAIN,
    )
    dtype: str = _training("auto", "dtype of matrix products", choices=("auto", "fp32", "fp16", "bf16"))
    gradient_checkpointing: str = _training(
        "off",
        "compute each block's inner tensors again in the backward pass instead of keeping them (offload: and "
        "keep its input in the host's memory; auto: with --base, where the estimate says that it is needed)",
        choices=("off", "on", "offload", "auto"),
        identity=False,
    )
    fused_optimizer: bool = _training(
        True, "one kernel steps all parameters (false: one operation after the other)", identity=False
    )
    kernels: str = _training(
        "auto", "our Triton kernels, or off: plain torch", choices=("auto", "off"), identity=False
    )
    deterministic: bool = _training(
        False, "the same bits in every run on one machine, for a slower step", identity=False
    )
    compile: str = _training(
        "auto",
        "torch.compile: on, off, or graphs (replays the compiled step from CUDA graphs: fastest for small "
        "models); or replay (CUDA graphs of the step as it is: begins at once, for models of our own "
        "kernels, as New-LLM)",
        choices=("auto", "on", "off", "graphs", "replay"),
        identity=False,
        tasks=_TRAIN,
    )
    weights_dtype: str = _training(
        "fp32",
        "fp32, or bf16 (on a GPU without it fp16): matrices without a float32 copy, rounded stochastically, "
        "so that small steps are not lost",
        choices=("fp32", "bf16", "fp16"),
        tasks=_TRAIN,
    )
    momentum_bits: int = _training(
        4, "bits of the momentum of adafactor (0: none), and of muon on bf16 weights", choices=(0, 4, 8, 32)
    )
    optimizer_in_backward: bool = _training(
        False,
        "step each parameter in the backward pass, once its gradient is whole, and free the gradient; the "
        "batch is then cut inside each block, and gradients are clipped by the norm as known at that moment",
        tasks=_TRAIN,
    )

    # --- Learning from another model's distribution beside the text ---------------------------------------

    teacher: str | None = _teacher(
        None, "New-LLM: learn from this model too: a run, a model's folder or a hub id (gpt2)"
    )
    distill_weight: float = _teacher(
        0.5, "share of the teacher in the loss (0: only the text)", minimum=0.0, maximum=1.0
    )

    # --- From any model: which one, and how its weights are held ------------------------------------------

    task: str = key(
        "train",
        "train (predict the next token); from a --base: sft (answer as dialogues do), dpo (prefer one "
        "answer to another), orpo (the same while learning the better one), kto (from single answers, good "
        "and bad), reward (a model that gives answers rewards), grpo "
        "(by such a model, or a Python function)",
        "base",
        choices=("train", *_FROM_BASE),
    )
    base: str = _base(
        "microsoft/DialoGPT-small",
        "the model to start from: a hub id, a folder, or one of our runs; on dialogues it makes the task sft",
    )
    load_in: str = _base(
        "full",
        "hold the base's frozen weights in full, 8bit, or 4bit (bitsandbytes; beside adapters)",
        choices=("full", "8bit", "4bit"),
        tasks=tuple(task for task in _FROM_BASE if task != "reward"),
    )
    packing: bool = _answers(
        False, "fill each row with several dialogues, which do not see each other (false: one a row)"
    )
    neftune_alpha: float = _answers(
        0.0, "noise on the embeddings in training (Jain et al., 2023, arXiv 2310.05914; 0: none)", minimum=0.0
    )

    # --- Preference training: how strongly ----------------------------------------------------------------

    beta: float = _preference(
        0.1,
        "dpo, kto, grpo: how dear it is to move away from the base model; orpo: the weight of the odds ratio",
        minimum=0.0,
        tasks=("dpo", "orpo", "kto", "grpo"),
    )
    loss_type: str = _preference(
        "sigmoid", "dpo: TRL's name of the loss, or several with + between them", tasks=("dpo",)
    )
    eval_pairs: int = _preference(
        500, "at most so many held-out pairs (grpo: prompts) are measured", minimum=2
    )
    sft_warm_start: float = _preference(
        0.0,
        "first learn the preferred answers for so many epochs, with all weights",
        minimum=0.0,
        tasks=("dpo", "kto"),
    )
    sft_learning_rate: float = _preference(
        5e-5, "peak learning rate of that warm start", minimum=0.0, tasks=("dpo", "kto")
    )

    reward: str | None = _preference(  # no identity: a file may move; what it holds is compared
        None,
        "what answers are worth: FILE.py:NAME, a Python function (completions, prompts, **columns) -> list "
        "of numbers, or a run of `newllm train reward`; typed each time, as it is a program",
        identity=False,
        tasks=("grpo",),
    )
    num_generations: int = _preference(
        8, "answers to each prompt, compared with each other", minimum=2, tasks=("grpo",)
    )
    max_completion_length: int = _preference(
        64,
        "tokens of an answer at most (of max_seq_length, which the prompt shares)",
        minimum=1,
        tasks=("grpo",),
    )

    # --- Small matrices beside the weights instead of the weights (Hu et al., 2021, arXiv 2106.09685) -----

    lora_rank: int = _lora(0, "rank of the adapters that are trained (0: all weights are trained)", minimum=0)
    lora_alpha: float = _lora(32.0, "the adapters' product is scaled by lora_alpha / lora_rank", minimum=0.0)
    lora_dropout: float = _lora(0.0, "dropout on the adapters' input", minimum=0.0, maximum=0.9)

    def __post_init__(self):
        # The name and the overrides it was loaded with; not part of the record.
        self.origin: tuple[str, dict] = ("", {})
        for f in fields(self):
            setattr(self, f.name, checked(f, getattr(self, f.name)))

    def differences(self, other: Recipe) -> list[str]:
        """Keys in which the two would be different runs, as `key: this | other`."""
        return [
            f"{f.name}: {getattr(self, f.name)} | {getattr(other, f.name)}"
            for f in fields(self)
            if f.metadata["identity"]
            and self.depends_on(f.name)
            and getattr(self, f.name) != getattr(other, f.name)
        ]

    def keep(self, recorded: Recipe) -> None:
        """Take what is `kept` from a run's record, but for what was typed."""
        for f in fields(self):
            if f.metadata["kept"] and f.name not in self.origin[1]:
                setattr(self, f.name, getattr(recorded, f.name))

    def depends_on(self, name: str) -> bool:
        """Whether the key does anything in this run."""
        return does_something(self.__dataclass_fields__[name], self.task, self.model)

    @property
    def has_pairs(self) -> bool:
        """Whether its data are preferences (`data.preferences`), not text or dialogues."""
        return self.task in (*_PAIRS, "grpo")

    def scaled_learning_rate(self) -> float:
        """The peak learning rate at this batch size, by square-root scaling (the guides' rule)."""
        return self.learning_rate * self.batch_scale()

    def batch_scale(self) -> float:
        """Square root of how much larger the batch is than the one the learning rates were chosen for."""
        return (self.batch_size / (self.learning_rate_batch_size or self.batch_size)) ** 0.5

    def run_path(self) -> Path:
        """The run's folder: `output_dir`, or `checkpoints/<run name>` (on Colab: in the clone)."""
        if self.output_dir:
            return Path(self.output_dir)
        clone = Path(__file__).resolve().parents[2]
        on_colab = "COLAB_RELEASE_TAG" in os.environ and (clone / "colab_bootstrap.sh").is_file()
        root = clone / "checkpoints" if on_colab else Path("checkpoints")
        named = root / self.run_name
        if self.model != "phase7" or self.sized_for != "cpu" or self.kernels == "off" or named.exists():
            return named
        # as it was called before; also in runs/aliases.py
        older = (path for path in root.glob("*_triton*") if path.name.replace("_triton", "", 1) == named.name)
        return next(older, named)

    def to_yaml(self) -> str:
        """The record in a run's folder, with the version that writes it. What a base decides by itself (its
        kind and sizes) is not in the record of what was trained from it."""
        import yaml

        idle = [
            f.name
            for f in fields(self)
            if self.task != "train" and not self.depends_on(f.name) and getattr(self, f.name) == f.default
        ]
        record = {key: value for key, value in asdict(self).items() if key not in idle}
        return yaml.safe_dump({"version": __version__, **record}, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """The record in a run's folder.

        Raises:
            UsageError: a key that is gone, and did something, or that no version knows.
        """
        return cls(**as_of_today(read_yaml(path), path, [f.name for f in fields(cls)]))
