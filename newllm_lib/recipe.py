"""One dataclass is everything that can be chosen about a run.

The same `Recipe` is the YAML file, the flags of `newllm train`, the notebook's form and the record in a run's folder. A YAML file
may also hold a section `when:`, whose parts apply only under a condition (a device kind, a model, a protocol or a recurrence) and
are resolved when the recipe is loaded, so the record in a run is always flat:

    num_layers: 4
    when:
      cpu: {num_layers: 2}
      tiny_gpt2: {learning_rate: 0.003}
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from newllm_lib.device import KINDS
from newllm_lib.errors import UsageError

SHIPPED = Path(__file__).with_name("recipes")


def _key(default, help: str, group: str, *, choices: tuple = (), identity: bool = True, minimum: float | None = None,
         maximum: float | None = None):  # fmt: skip
    """A recipe key. `identity`: two runs that differ in it are different runs (resume refuses to mix them)."""
    metadata = {"help": help, "group": group, "choices": choices, "identity": identity, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata)


@dataclass
class Recipe:
    """Every choice of a run. Lengths are in tokens, sizes in channels, batch sizes in sequences per optimizer step."""

    recipe: str = _key("custom", "the recipe's name", "run")
    sized_for: str = _key("auto", "device kind whose preset is used", "run", choices=("auto", *KINDS))
    model: str = _key("new_llm", "which model", "model", choices=("new_llm", "tiny_gpt2"))
    recurrence: str = _key(
        "parallel", "New-LLM's recurrence: parallel over time, or the original's sequential one", "model",
        choices=("parallel", "sequential"),
    )  # fmt: skip
    seed: int = _key(0, "random seed: weights, dropout and data order", "training", minimum=0)

    data: str = _key("demo", "a source by name (demo, wikitext), or a Hugging Face data set id", "data")
    data_dir: str | None = _key(
        None, "folder with train.*, validation.*, test.* (.txt .jsonl .json .parquet) to use instead", "data",
        identity=False,  # a folder may move; what it holds is compared by content
    )  # fmt: skip
    max_samples: int | None = _key(None, "use only this many documents of the training split", "data", minimum=1)
    protocol: str = _key(
        "standard", "seed: the original's 1,000-word vocabulary and metric, to compare with its figures", "data",
        choices=("standard", "seed"),
    )  # fmt: skip
    tokenizer: str = _key("bpe", "bpe (trained on the data), words, gpt2, or a folder or hub id of a tokenizer", "data")
    vocab_size: int = _key(4096, "vocabulary of a tokenizer that is trained here", "data", minimum=300)
    max_seq_length: int = _key(128, "tokens in a training block", "data", minimum=2)
    separate_documents: bool = _key(
        True, "keep documents in one block apart: the state (or the attention) starts anew at each", "data"
    )
    loss_on: str = _key(
        "everything", "what is learned and measured of a dialogue: the assistant's answers, or everything", "data",
        choices=("answers", "everything"),
    )  # fmt: skip

    num_layers: int = _key(4, "blocks (sequential recurrence: depth of the per-token MLP)", "model", minimum=1)
    hidden_size: int = _key(256, "channels of the residual stream (New-LLM)", "model", minimum=1)
    context_dim: int = _key(256, "size of the context vector each block carries", "model", minimum=1)
    mlp_size: int = _key(1024, "inner channels of the token MLP", "model", minimum=1)
    conv_width: int = _key(4, "tokens seen by the short causal convolution (1: none)", "model", minimum=1)
    num_heads: int = _key(4, "attention heads (TinyGPT2)", "model", minimum=1)
    dropout: float = _key(0.1, "dropout on the residual branches", "model", minimum=0.0, maximum=0.9)
    tie_embeddings: bool = _key(True, "use the embedding as the output layer too", "model")

    epochs: float = _key(6.0, "passes over the training split", "training", minimum=0.0001)
    max_steps: int | None = _key(None, "stop after this many optimizer steps", "training", minimum=1)
    batch_size: int = _key(128, "sequences per optimizer step, over all GPUs", "training", minimum=1)
    micro_batch_size: int | str = _key(
        "auto", "sequences at a time on one GPU; the rest of the batch is accumulated", "training", identity=False,
        minimum=1,
    )  # fmt: skip
    optimizer: str = _key(
        "adamw", "adamw, or muon for the matrices inside the blocks (AdamW for the rest)", "training",
        choices=("adamw", "muon"),
    )  # fmt: skip
    learning_rate: float = _key(6e-3, "peak learning rate", "training", minimum=0.0)
    learning_rate_batch_size: int | None = _key(
        None, "batch size the learning rate was chosen for: another batch size scales it by the square root", "training",
        minimum=1,
    )  # fmt: skip
    muon_learning_rate: float = _key(0.02, "Muon's peak learning rate (optimizer: muon)", "training", minimum=0.0)
    warmup_steps: float = _key(100, "steps of linear warm-up (below 1: a share of all steps)", "training", minimum=0.0)
    schedule: str = _key(
        "cosine", "how the learning rate falls (wsd: not before half of the steps, then linearly)", "training",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    min_learning_rate_ratio: float = _key(0.05, "last learning rate as a share of the peak", "training", minimum=0.0)
    weight_decay: float = _key(0.1, "weight decay of matrices", "training", minimum=0.0)
    adam_beta2: float = _key(0.98, "AdamW's second beta", "training", minimum=0.0, maximum=0.9999)
    max_grad_norm: float = _key(1.0, "clip gradients to this norm (0: never)", "training", minimum=0.0)
    patience: int | None = _key(
        None, "stop after this many evaluations without a better one", "training", minimum=1
    )
    carry_state: bool = _key(
        False, "New-LLM: start each block with the state the same text's last block ended with (blocks are then read in order)",
        "training",
    )  # fmt: skip
    evals_per_epoch: int = _key(1, "evaluations on the validation split in each epoch", "training", minimum=1)
    dtype: str = _key("auto", "dtype of matrix products", "training", choices=("auto", "fp32", "fp16", "bf16"))
    compile: str = _key(
        "auto", "torch.compile: on, off, or graphs (replays the compiled step from CUDA graphs: fastest for small models)",
        "training", choices=("auto", "on", "off", "graphs"), identity=False,
    )  # fmt: skip

    logging_steps: int = _key(50, "optimizer steps between two lines of the log", "run", identity=False, minimum=1)
    save_minutes: float = _key(
        5.0, "save at least this often (also at each epoch's end)", "run", identity=False, minimum=0.0
    )
    keep_checkpoints: int = _key(2, "checkpoints kept (besides best and last)", "run", identity=False, minimum=1)
    report_to: str = _key(
        "none", "also report to one of these", "run", identity=False, choices=("none", "tensorboard", "wandb", "trackio")
    )
    output_dir: str | None = _key(None, "folder of this run (default: checkpoints/<name>)", "run", identity=False)
    run_name: str = _key("auto", "name of the run; made from what was chosen", "run", identity=False)
    resume: str = _key("auto", "auto (continue where it stopped), never, or a checkpoint", "run", identity=False)

    def __post_init__(self):
        self.origin: tuple[str, dict] | None = None  # name and overrides it was loaded with; not part of the record
        for f in fields(self):
            setattr(self, f.name, _checked(f, getattr(self, f.name)))

    def differences(self, other: Recipe) -> list[str]:
        """Keys in which the two would be different runs, as `key: this | other`."""
        return [
            f"{f.name}: {getattr(self, f.name)} | {getattr(other, f.name)}"
            for f in fields(self)
            if f.metadata["identity"] and getattr(self, f.name) != getattr(other, f.name)
        ]

    def scaled_learning_rate(self) -> float:
        """The peak learning rate at this batch size, by square-root scaling (the guides' rule)."""
        return self.learning_rate * self.batch_scale()

    def batch_scale(self) -> float:
        """Square root of how much larger the batch is than the one the learning rates were chosen for."""
        if self.learning_rate_batch_size is None:
            return 1.0
        return (self.batch_size / self.learning_rate_batch_size) ** 0.5

    def run_path(self) -> Path:
        """The run's folder: `output_dir`, or `checkpoints/<run name>` below the current folder (on Colab: below the clone)."""
        if self.output_dir:
            return Path(self.output_dir)
        clone = Path(__file__).resolve().parents[1]
        on_colab = "COLAB_RELEASE_TAG" in os.environ and (clone / "colab_bootstrap.sh").is_file()
        return (clone / "checkpoints" if on_colab else Path("checkpoints")) / self.run_name

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Read the flat record of a run (`recipe.yaml` in its folder)."""
        values = _read(path)
        _check_keys(values, str(path))
        return cls(**values)


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with its first comment line."""
    return {
        p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for p in sorted(SHIPPED.glob("*.yaml"))
    }


def load_recipe(name_or_path: str, overrides: dict | None = None, device_kind: str | None = None) -> Recipe:
    """A recipe by shipped name or YAML file, resolved for this device, with `overrides` (from flags or a form) on top.

    Args:
        device_kind: whose preset to use (`Device.kind`); default: `sized_for` if given, else what `probe()` finds.
    Raises:
        UsageError: unknown recipe, unknown key (with the nearest one), or a value of the wrong type or range.
    """
    path = _find(name_or_path)
    values = _read(path)
    sections = values.pop("when", None) or {}
    if not isinstance(sections, dict):
        raise UsageError(f"`when:` in {path} must hold `condition: {{key: value}}` lines, such as `cpu: {{num_layers: 2}}`.")
    asked = dict(overrides or {})
    overrides = dict(asked)
    _check_keys(values, str(path))
    _check_keys(overrides, "the command line")
    values.setdefault("recipe", path.stem)

    kind = overrides.get("sized_for") or values.get("sized_for") or "auto"
    if kind == "auto":
        kind = device_kind or _probe_kind()
    chosen = {**values, **overrides}
    conditions = {str(kind), *(str(chosen.get(k, _default(k))) for k in ("model", "protocol", "recurrence"))}
    for condition, part in sections.items():
        _check_condition(condition, path)
        _check_keys(part, f"{path}, when: {condition}")
        if condition in conditions:
            values.update(part)
    base = Recipe(**{**values, "sized_for": kind})
    if "learning_rate" in overrides or "batch_size" in overrides:
        overrides = _keep_learning_rate_meaning(base, overrides)
    recipe = replace(base, **{**overrides, "sized_for": kind})
    if recipe.protocol == "seed":
        if overrides.get("tokenizer", "words") != "words":
            raise UsageError(f"protocol seed is the original's 1,000 words: leave out tokenizer {overrides['tokenizer']}.")
        recipe = replace(recipe, **{"tokenizer": "words", "vocab_size": 1000} | _only(overrides, ("vocab_size",)))
        base = replace(base, tokenizer="words", vocab_size=1000)
    if recipe.run_name == "auto":
        recipe.run_name = _run_name(base, recipe)
    if recipe.data_dir:  # the record must be true from any folder
        recipe.data_dir = str(Path(recipe.data_dir).expanduser().absolute())
    recipe.origin = (name_or_path, asked)
    return recipe


def _keep_learning_rate_meaning(base: Recipe, overrides: dict) -> dict:
    """A batch size given by the user scales the recipe's learning rate; a learning rate given by the user is meant as it is."""
    if "learning_rate_batch_size" in overrides:
        return overrides
    if "learning_rate" in overrides:
        return {**overrides, "learning_rate_batch_size": overrides.get("batch_size", base.batch_size)}
    return {**overrides, "learning_rate_batch_size": base.learning_rate_batch_size or base.batch_size}


def _run_name(base: Recipe, recipe: Recipe) -> str:
    """The owner's names (`new_llm_wikitext`, `tinygpt2_wikitext`), with every change of data or architecture in them."""
    parts = [{"new_llm": "new_llm", "tiny_gpt2": "tinygpt2"}[recipe.model], recipe.recipe]
    if recipe.recurrence != "parallel":
        parts.append(recipe.recurrence)
    if recipe.protocol != "standard":
        parts.append(f"protocol-{recipe.protocol}")
    if recipe.data_dir:
        parts.append(Path(recipe.data_dir).resolve().name)
    elif recipe.data != base.data:
        parts.append(recipe.data.rsplit("/", 1)[-1])
    for key, label in _NAMED_KEYS.items():
        if getattr(recipe, key) != getattr(base, key):
            parts.append(f"{label}{_short(getattr(recipe, key))}")
    if recipe.max_samples:
        parts.append(_short(recipe.max_samples))
    return "_".join("".join(c if c.isalnum() or c in "-._" else "-" for c in p) if i else p for i, p in enumerate(parts))


_NAMED_KEYS = {
    "num_layers": "layers", "hidden_size": "hidden", "context_dim": "context", "mlp_size": "mlp", "conv_width": "conv",
    "max_seq_length": "len", "vocab_size": "vocab", "tokenizer": "", "seed": "seed",
    "loss_on": "loss-on-",
}  # fmt: skip


def _short(value) -> str:
    if isinstance(value, int):
        for size, letter in ((10**6, "M"), (10**3, "k")):
            if value >= size and value % size == 0:
                return f"{value // size}{letter}"
    return str(value)


def _find(name_or_path: str) -> Path:
    shipped = SHIPPED / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    names = list(shipped_recipes())
    near = difflib.get_close_matches(name_or_path, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UsageError(f"No recipe or YAML file named {name_or_path!r}: {hint} (`newllm recipes` lists them)")


def _read(path: Path) -> dict:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f" (line {error.problem_mark.line + 1})" if getattr(error, "problem_mark", None) else ""
        raise UsageError(f"{path} is not readable as YAML{line}: mend it, or start from `newllm recipes show demo`.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `key: value` lines; start from `newllm recipes show demo`.")
    return values


def _check_keys(values: dict, where: str) -> None:
    known = [f.name for f in fields(Recipe)]
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold `key: value` lines.")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "`newllm recipes show demo` lists all keys"
            raise UsageError(f"Unknown key {key!r} in {where}: {hint}")


def _check_condition(condition: str, path: Path) -> None:
    known = [*KINDS, *(c for f in fields(Recipe) if f.name in ("model", "protocol", "recurrence") for c in f.metadata["choices"])]
    if condition not in known:
        raise UsageError(f"Unknown condition {condition!r} under `when:` in {path}: use one of {', '.join(known)}.")


_TYPE_NAMES = {types.NoneType: "none", str: "text", bool: "true or false", float: "number"}


def value_types(f) -> tuple[type, ...]:
    """The plain types a recipe field accepts, e.g. (int, NoneType) for `int | None`."""
    hint = typing.get_type_hints(Recipe)[f.name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _checked(f, value):
    """`value` as the field's type; text such as "8e-4", "true" or "none" (from flags, forms, YAML 1.1) is understood.

    Raises:
        UsageError: wrong type, not one of the choices, or below the minimum.
    """
    accepted = value_types(f)
    if isinstance(value, str):
        value = _from_text(value, accepted)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted:
        value = float(value)
    if isinstance(value, float) and int in accepted and float not in accepted and value.is_integer():
        value = int(value)
    choices, minimum = f.metadata["choices"], f.metadata["minimum"]
    if isinstance(value, bool) and "on" in choices and "off" in choices:  # YAML 1.1 reads on/off as booleans
        value = "on" if value else "off"
    number_or_auto = accepted == (int, str)  # the only text such a key takes is "auto"
    if type(value) not in accepted or (number_or_auto and isinstance(value, str) and value != "auto"):
        kinds = "int or auto" if number_or_auto else " or ".join(_TYPE_NAMES.get(t, t.__name__) for t in accepted)
        raise UsageError(f"{f.name} must be {kinds}, not {value!r}.")
    if choices and value not in choices:
        raise UsageError(f"{f.name} must be one of {', '.join(choices)}, not {value!r}.")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (value != value or value in (float("inf"), float("-inf"))):
        raise UsageError(f"{f.name} must be a finite number, not {value}.")
    if minimum is not None and number and value < minimum:
        raise UsageError(f"{f.name} must be at least {minimum:g}, not {value}.")
    if f.metadata["maximum"] is not None and number and value > f.metadata["maximum"]:
        raise UsageError(f"{f.name} must be at most {f.metadata['maximum']:g}, not {value}.")
    return value


def _from_text(value: str, accepted: tuple[type, ...]):
    word = value.strip().lower()
    if types.NoneType in accepted and word in ("none", "null", ""):
        return None
    if bool in accepted and word in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return word in ("true", "yes", "on", "1")
    for number in (int, float):
        if number in accepted:
            try:
                return number(value.replace(",", "").replace("_", ""))
            except ValueError:
                continue
    if int in accepted:
        try:
            as_float = float(value)
        except ValueError:
            return value
        return int(as_float) if as_float.is_integer() else value
    return value


def _default(key: str):
    return next(f.default for f in fields(Recipe) if f.name == key)


def _only(values: dict, keys: tuple) -> dict:
    return {k: values[k] for k in keys if k in values}


def _probe_kind() -> str:
    from newllm_lib.device import probe

    return probe().kind
