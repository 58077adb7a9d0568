"""The keys of a recipe, a dataclass for each subject. `Recipe` is all of them together."""

from __future__ import annotations

from dataclasses import dataclass, field

from newllm_lib.device import KINDS


def key(default, help: str, group: str, *, choices: tuple = (), identity: bool = True, minimum: float | None = None,
         maximum: float | None = None, flag: str | None = None):  # fmt: skip
    """A recipe key. `identity`: two runs that differ in it are different runs (resume refuses to mix them).

    `flag`: another name of its flag, where the key's own would be clumsy or is no Python name (`--from`).
    """
    metadata = {"help": help, "group": group, "choices": choices, "identity": identity, "minimum": minimum, "maximum": maximum}
    metadata["flag"] = flag
    return field(default=default, metadata=metadata)


@dataclass
class RunKeys:
    """What a run is called, where it lies, how often it speaks and saves."""

    recipe: str = key("custom", "the recipe's name", "run")
    sized_for: str = key("auto", "device kind whose preset is used", "run", choices=("auto", *KINDS))
    logging_steps: int = key(50, "optimizer steps between two lines of the log", "run", identity=False, minimum=1)
    save_minutes: float = key(
        5.0, "save at least this often (also at each epoch's end)", "run", identity=False, minimum=0.0
    )
    save_steps: int | None = key(None, "also save every so many steps", "run", identity=False, minimum=1)
    log_style: str = key(
        "epochs", "epochs (progress and time left), or steps (the Phase 7 guide's line for each logged step)", "run",
        choices=("epochs", "steps"), identity=False,
    )  # fmt: skip
    keep_checkpoints: int = key(2, "checkpoints kept (besides best and last)", "run", identity=False, minimum=1)
    sample_tokens: int = key(
        24, "tokens in each of the sample answers that are written at every evaluation (0: none)", "run", identity=False,
        minimum=0,
    )  # fmt: skip
    report_to: str = key(
        "none", "also report to one of these", "run", identity=False, choices=("none", "tensorboard", "wandb", "trackio")
    )
    output_dir: str | None = key(None, "folder of this run (default: checkpoints/<name>)", "run", identity=False)
    run_name: str = key("auto", "name of the run; made from what was chosen", "run", identity=False)
    resume: str = key(
        "auto", "auto (continue if it was stopped), last (only continue), never, or a checkpoint", "run", identity=False
    )


@dataclass
class KeepingKeys:
    """Where a run is kept besides its folder, and what it may share."""

    mirror_dir: str | None = key(
        None, "copy the run to this folder (on Drive, say) while it trains; what is further there is brought back first",
        "run", identity=False,
    )  # fmt: skip
    force: bool = key(False, "train although another run uses this GPU", "run", identity=False)


@dataclass
class ScaleKeys:
    """On how many GPUs it is trained; a batch stays what `batch_size` says."""

    num_gpus: int | str = key(
        1, "GPUs of this machine to train on, or auto: all of them (where there is none: so many processes)", "scale",
        identity=False, minimum=1,
    )  # fmt: skip
    distribution: str = key(
        "auto", "with several: ddp (a whole model on each), fsdp2 (weights, gradients and optimizer state are cut), or "
        "auto: ddp, and fsdp2 for a Phase 7 model that the estimate says is too large", "scale",
        choices=("auto", "ddp", "fsdp2"), identity=False,
    )  # fmt: skip


@dataclass
class DataKeys:
    """What is read, and how it becomes tokens."""

    data: str = key("demo", "a source by name (demo, wikitext), or a Hugging Face data set id", "data")
    data_dir: str | None = key(
        None, "folder with train.*, validation.*, test.* (.txt .jsonl .json .parquet) to use instead", "data",
        identity=False,  # a folder may move; what it holds is compared by content
    )  # fmt: skip
    max_samples: int | None = key(None, "use only this many documents of the training split", "data", minimum=1)
    streaming: str = key(
        "auto", "prepare the data while training: on, off, or by its size (300 MB of .jsonl or .parquet are large)", "data",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    protocol: str = key(
        "standard", "seed: the original's 1,000-word vocabulary and metric, to compare with its figures", "data",
        choices=("standard", "seed"),
    )  # fmt: skip
    tokenizer: str = key("bpe", "bpe (trained on the data), words, gpt2, or a folder or hub id of a tokenizer", "data")
    vocab_size: int = key(4096, "vocabulary of a tokenizer that is trained here", "data", minimum=300)
    template: str = key(
        "chat", "how turns are written: chat, or instruction (the original's Instruction: … Context: … Response: …)", "data",
        choices=("chat", "instruction"),
    )  # fmt: skip
    max_seq_length: int = key(128, "tokens in a training block", "data", minimum=2)
    separate_documents: bool = key(
        True, "keep documents in one block apart: the state (or the attention) starts anew at each", "data"
    )
    loss_on: str = key(
        "everything", "what is learned and measured of a dialogue: the assistant's answers, or everything", "data",
        choices=("answers", "everything"),
    )  # fmt: skip


@dataclass
class ModelKeys:
    """Which model, and its sizes in channels."""

    model: str = key("new_llm", "which model", "model", choices=("new_llm", "tiny_gpt2", "phase7"))
    match: str = key(
        "new_llm", "TinyGPT2: the model whose stored parameters it gets, in the sizes given here", "model",
        choices=("new_llm", "phase7"),
    )  # fmt: skip
    recurrence: str = key(
        "parallel", "New-LLM's recurrence: parallel over time, or the original's sequential one", "model",
        choices=("parallel", "sequential"),
    )  # fmt: skip
    time_scales: str = key(
        "even", "how long channels of New-LLM's context vector remember at first: even (4 to 150 tokens), or multi (groups from "
        "one to thousands of tokens)", "model", choices=("even", "multi"),
    )  # fmt: skip
    num_layers: int = key(4, "blocks (sequential recurrence: depth of the per-token MLP)", "model", minimum=1)
    hidden_size: int = key(256, "channels of the residual stream (TinyGPT2 chooses its own)", "model", minimum=1)
    context_dim: int = key(256, "size of the context vector each block carries", "model", minimum=1)
    mlp_size: int = key(1024, "inner channels of the token MLP", "model", minimum=1)
    conv_width: int = key(4, "tokens seen by the short causal convolution (1: none)", "model", minimum=1)
    mlp_conv: bool = key(False, "New-LLM: the token MLP reads the last few tokens too, through a short convolution", "model")
    embedding_skip: bool = key(
        False, "New-LLM: each block reads a learned mixture of the residual stream and the embeddings", "model"
    )
    num_heads: int = key(4, "attention heads (TinyGPT2, Phase 7)", "model", minimum=1)
    dropout: float = key(0.1, "dropout on the residual branches", "model", minimum=0.0, maximum=0.9)
    tie_embeddings: bool = key(True, "use the embedding as the output layer too", "model")


@dataclass
class Phase7Keys:
    """Phase 7's parts. Its state-space branch has New-LLM's keys: context_dim, conv_width."""

    attention: str = key(
        "hyperbolic", "to the last attention_window tokens by distance in the Poincaré ball (hyperbolic) or by the usual dot "
        "product (dot); linear (Phase 8): to all tokens by products of hyperbolic features, in linear time", "phase7",
        choices=("hyperbolic", "dot", "linear"),
    )  # fmt: skip
    attention_window: int = key(128, "tokens that attention sees, the token itself included", "phase7", minimum=1)
    linear_features: int = key(64, "linear attention: features of each head's queries and keys", "phase7", minimum=1)
    flash_attention: bool = key(
        True, "never hold all attention scores (false: plain torch, time x time numbers for each head)", "phase7",
        identity=False,
    )  # fmt: skip
    curvature_schedule: str = key(
        "linear", "how a factor on the learned curvatures rises to 1 (off: it is 1 from the start)", "phase7",
        choices=("linear", "cosine", "off"),
    )  # fmt: skip
    curvature_start: float = key(0.1, "that factor at the first step", "phase7", minimum=1e-6)
    curvature_steps: float = key(0.5, "steps until it is 1 (at most 1: a share of all steps)", "phase7", minimum=0.0)
    ar_ssm: bool = key(True, "the state-space branch, and the gate between it and attention", "phase7")
    ssm_ranks: int = key(
        16, "groups of its channels that each token opens by gates (must divide context_dim)", "phase7", minimum=1
    )
    embedding: str = key(
        "htt", "embedding and head: htt, two small cores with phases (a tensor train), or dense", "phase7",
        choices=("htt", "dense"),
    )  # fmt: skip
    htt_rank: int = key(64, "rank of the cores (with their phases they have twice that)", "phase7", minimum=1)


@dataclass
class StartKeys:
    """Which weights training starts from."""

    from_run: str | None = key(
        None, "start from this run's best weights, with its tokenizer and its sizes: a run, its folder, or a recipe whose "
        "run is taken (none: from scratch)", "start", flag="from",
    )  # fmt: skip


@dataclass
class TrainingKeys:
    """How it is trained. Batch sizes are in sequences per optimizer step."""

    seed: int = key(0, "random seed: weights, dropout and data order", "training", minimum=0)
    epochs: float = key(6.0, "passes over the training split", "training", minimum=0.0001)
    max_steps: int | None = key(None, "stop after this many optimizer steps", "training", minimum=1)
    batch_size: int = key(128, "sequences per optimizer step, over all GPUs", "training", minimum=1)
    micro_batch_size: int | str = key(
        "auto", "sequences at a time on one GPU; the rest of the batch is accumulated", "training", identity=False,
        minimum=1,
    )  # fmt: skip
    optimizer: str = key(
        "adamw", "adamw, or muon for the matrices inside the blocks (AdamW for the rest); adafactor (second moment factored, "
        "momentum in few bits), adamw8bit and adamw4bit (torchao) need less memory", "training",
        choices=("adamw", "muon", "adafactor", "adamw8bit", "adamw4bit"),
    )  # fmt: skip
    learning_rate: float = key(6e-3, "peak learning rate", "training", minimum=0.0)
    learning_rate_batch_size: int | None = key(
        None, "batch size the learning rate was chosen for: another batch size scales it by the square root", "training",
        minimum=1,
    )  # fmt: skip
    muon_learning_rate: float = key(0.02, "Muon's peak learning rate (optimizer: muon)", "training", minimum=0.0)
    warmup_steps: float = key(100, "steps of linear warm-up (below 1: a share of all steps)", "training", minimum=0.0)
    schedule: str = key(
        "cosine", "how the learning rate falls (wsd: not before half of the steps, then linearly)", "training",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    min_learning_rate_ratio: float = key(0.05, "last learning rate as a share of the peak", "training", minimum=0.0)
    weight_decay: float = key(0.1, "weight decay of matrices", "training", minimum=0.0)
    adam_beta2: float = key(0.98, "AdamW's second beta", "training", minimum=0.0, maximum=0.9999)
    max_grad_norm: float = key(1.0, "clip gradients to this norm (0: never)", "training", minimum=0.0)
    patience: int | None = key(
        None, "stop after this many evaluations without a better one", "training", minimum=1
    )
    carry_state: bool = key(
        False, "New-LLM, Phase 7: start each block with the state that the text's last block ended with (blocks in order)",
        "training",
    )  # fmt: skip
    evals_per_epoch: int = key(1, "evaluations on the validation split in each epoch", "training", minimum=1)
    dtype: str = key("auto", "dtype of matrix products", "training", choices=("auto", "fp32", "fp16", "bf16"))
    gradient_checkpointing: str = key(
        "off", "compute each block's inner tensors again in the backward pass instead of keeping them (offload: and keep its "
        "input in the host's memory)", "training", choices=("off", "on", "offload"), identity=False,
    )  # fmt: skip
    fused_optimizer: bool = key(
        True, "one kernel steps all parameters (false: one operation after the other)", "training", identity=False
    )
    kernels: str = key(
        "auto", "our Triton kernels, where the GPU has them (off: plain torch)", "training", choices=("auto", "off"),
        identity=False,
    )  # fmt: skip
    deterministic: bool = key(
        False, "the same bits in every run on one machine, for a slower step (on a GPU: torch's deterministic algorithms)",
        "training", identity=False,
    )  # fmt: skip
    compile: str = key(
        "auto", "torch.compile: on, off, or graphs (replays the compiled step from CUDA graphs: fastest for small models); or "
        "replay (CUDA graphs of the step as it is: begins at once, for models of our own kernels, as New-LLM)", "training",
        choices=("auto", "on", "off", "graphs", "replay"), identity=False,
    )  # fmt: skip


@dataclass
class DistillKeys:
    """Learning from another model's distribution beside the text."""

    teacher: str | None = key(None, "New-LLM: learn from this model too: a run, a model's folder or a hub id (gpt2)", "training")
    distill_weight: float = key(0.5, "share of the teacher in the loss (0: only the text)", "training", minimum=0.0, maximum=1.0)
    distill_temperature: float = key(2.0, "softens both distributions where they are compared", "training", minimum=0.1)


@dataclass
class PreferenceKeys:
    """Preference training (task: dpo): from which model, on which pairs, how strongly; data and training as for the rest."""

    task: str = key(
        "train", "train (predict the next token), or dpo (prefer one answer to another: Rafailov et al., 2023)", "preference",
        choices=("train", "dpo"),
    )  # fmt: skip
    base: str = key(
        "microsoft/DialoGPT-small", "dpo: the model to start from: a hub id, a folder, or one of our runs", "preference"
    )
    beta: float = key(0.1, "dpo: how dear it is to move away from the base model", "preference", minimum=0.0001)
    loss_type: str = key("sigmoid", "dpo: TRL's name of the loss, or several with + between them", "preference")
    precompute_ref_log_probs: bool = key(
        True, "dpo: read all pairs with the base model once before training, not in every step", "preference"
    )
    eval_pairs: int = key(500, "dpo: at most so many held-out pairs are measured", "preference", minimum=2)
    sft_warm_start: float = key(
        0.0, "dpo: first learn the preferred answers for so many epochs (the whole model, which then is the base)", "preference",
        minimum=0.0,
    )  # fmt: skip
    sft_learning_rate: float = key(5e-5, "dpo: peak learning rate of that warm start", "preference", minimum=0.0)


@dataclass
class LoraKeys:
    """Training small matrices beside the weights instead of the weights (Hu et al., 2021, arXiv 2106.09685)."""

    lora_rank: int = key(0, "rank of the adapters that are trained (0: all weights are trained)", "lora", minimum=0)
    lora_alpha: float = key(32.0, "the adapters' product is scaled by lora_alpha / lora_rank", "lora", minimum=0.0)
    lora_dropout: float = key(0.0, "dropout on the adapters' input", "lora", minimum=0.0, maximum=0.9)


@dataclass
class MemoryKeys:
    """How little memory training takes."""

    weights_dtype: str = key(
        "fp32", "fp32, or bf16: matrices without a float32 copy, rounded stochastically so that small steps are not lost",
        "training", choices=("fp32", "bf16"),
    )  # fmt: skip
    momentum_bits: int = key(
        4, "bits of the momentum of adafactor, and of muon on bf16 weights: 0 (adafactor only: none), 4, 8 or 32", "training",
        choices=(0, 4, 8, 32),
    )  # fmt: skip
    step_in_backward: bool = key(
        False, "step each parameter in the backward pass, once its gradient is whole, and free the gradient; the batch is "
        "then cut inside each block, and gradients are clipped by the norm as known at that moment", "training",
    )  # fmt: skip
