"""Two models side by side on the same text, and what counting alone would do."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np

from newllm_lib.checkpoints import ModelLocation, load_model, locate
from newllm_lib.console import say
from newllm_lib.data.templates import END_OF_TEXT, END_OF_TURN, ROLE_TOKENS
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.evaluate_run import (
    EvaluationData,
    counted_baselines,
    packed_split,
    training_recipe,
)
from newllm_lib.evaluation.metrics import describe, evaluate
from newllm_lib.evaluation.speed import measure_speed
from newllm_lib.generation.generate import complete
from newllm_lib.generation.sampling import Settings, token_id
from newllm_lib.generation.stateful import model_device
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text, check_file

SAMPLING = Settings(temperature=0.8, top_k=50, top_p=0.95, max_new_tokens=60, seed=0)
_LABELS = {"new_llm": "New-LLM", "tiny_gpt2": "TinyGPT2", "phase7": "Phase 7"}
_SHOWN = {END_OF_TEXT: "", END_OF_TURN: "\n"} | {token: f"{role}: " for role, token in ROLE_TOKENS.items()}
_NO_DIFFERENCE = 0.05  # per cent: nearer than this, two figures are called equal


def compare(
    model_a: str | Path | Run,
    model_b: str | Path | Run,
    data: EvaluationData | None = None,
    *,
    output_dir: str | Path | None = None,
    samples: int = 3,
    settings: Settings = SAMPLING,
    speed: bool = True,
    device: str | None = None,
) -> dict:
    """Evaluate two models on the same text, print the table, save comparison.md and comparison.png.

    Args:
        model_a: as for `load_model`.
        model_b: as for `load_model`. Differences are model_a's, in % of model_b's.
        data: on what (default: the test split of what the first of them was trained on that is a run).
        output_dir: where the two files go (default: the first run's folder, or the current one where there is
            no run).
        samples: how many beginnings of held-out documents both continue, with `settings`.
        speed: measure times and memory too.
        device: "cpu" or "cuda" (default: what `probe()` finds).

    Returns:
        models (a list of two: name, label, parameters, the figures of `metrics.evaluate` and
        `speed.measure_speed`, samples, curve), baselines, prompts, difference_percent, verdict, notes, split,
        files.

    Raises:
        UsageError, NewLLMError: a model cannot be loaded, or its data cannot be read.
    """
    from newllm_lib.device import probe
    from newllm_lib.evaluation.compare.picture import draw
    from newllm_lib.evaluation.compare.table import as_markdown, as_text

    data, pair = data or EvaluationData(), (locate(model_a), locate(model_b))
    folder = Path(output_dir) if output_dir else next((p.run.path for p in pair if p.run), Path()).absolute()
    files = [folder / "comparison.md", folder / "comparison.png"]
    _refuse_others(*files)
    recorded = next((recipe for recipe in (place.recipe() for place in pair) if recipe is not None), None)
    data.recipe(recorded, f"{pair[0].title()} and {pair[1].title()}")  # refuses before anything is loaded
    measure = _Measure(data, recorded, samples, settings, speed, device or probe().torch_device)
    models = []
    for place in pair:
        say(f"Evaluating {place.title()} on the {data.split} split")
        models.append(measure(place))
    if models[0]["name"] == models[1]["name"]:
        for entry, place in zip(models, pair, strict=True):
            entry["name"] = str(place.run.path if place.run else place.name)
    result = {
        "split": data.split,
        "models": models,
        "baselines": measure.baselines,
        "prompts": measure.prompts,
        "settings": settings,
        "notes": _notes(*models),
    }
    result["difference_percent"] = differences(*models)
    result["verdict"] = verdict(result)
    say(as_text(result))
    atomic_write_text(files[0], as_markdown(result))
    draw(result, files[1])
    say(f"Saved {files[0]} and {files[1].name}")
    result["settings"] = vars(settings)
    return result | {"files": [str(f) for f in files]}


def _refuse_others(page: Path, picture: Path) -> None:
    """Raise UsageError where what is no comparison of ours would be replaced."""
    if page.parent.exists() and not page.parent.is_dir():
        raise UsageError(f"{page.parent} is a file, and --output_dir names a folder: give another.")
    check_file(page, "--output_dir", lambda text: "![comparison](comparison.png)" in text)
    if not page.exists():  # a picture without its page is another's
        check_file(picture, "--output_dir", lambda text: False)


class _Measure:
    """Everything about each model in turn, on the same text; the first's data is kept for both.

    Args:
        recorded: whose data it is where `data` names none, also for a model without a record of its own.
    """

    def __init__(
        self,
        data: EvaluationData,
        recorded: Recipe | None,
        samples: int,
        settings: Settings,
        speed: bool,
        device: str,
    ):
        self.data, self.recorded, self.samples, self.settings = data, recorded, samples, settings
        self.speed, self.device = speed, device
        self.documents: list[int] | None = None  # which ones are continued
        self.prompts: list[str] = []
        self.baselines: dict = {}

    def __call__(self, place: ModelLocation) -> dict:
        """The entry of one model in the comparison's `models`."""
        loaded = load_model(place, device=self.device)
        model, tokenizer, own = loaded.model, loaded.tokenizer, loaded.recipe or self.recorded
        recipe = self.data.recipe(own, place.title())
        packed = packed_split(recipe, tokenizer, self.data.split)
        entry = {"name": place.title(), **_kind(model), "protocol": recipe.protocol}
        entry |= evaluate(model, packed, tokenizer)
        say("  " + describe(entry))
        if self.documents is None:
            self.documents = _sample_documents(packed, self.samples)
            self.baselines = counted_baselines(training_recipe(recipe, own), tokenizer, packed)
            self.prompts = [readable(tokenizer, ids) for ids in prompts(packed, tokenizer, self.documents)]
        beginnings = prompts(packed, tokenizer, self.documents)
        entry["samples"] = [complete(model, tokenizer, [ids], self.settings)[0] for ids in beginnings]
        if self.speed:
            entry |= measure_speed(model, length=recipe.max_seq_length, dtype=_training_dtype(model, recipe))
        if place.run is None:
            return entry | {"curve": [], "trained_tokens_per_second": None}
        return entry | {
            "curve": validation_curve(place.run),
            "trained_tokens_per_second": trained_speed(place.run),
        }


def _kind(model) -> dict:
    """What kind of model it is, how tables call that, and its size."""
    from newllm_lib.models import parameters

    kind = model.config.model_type
    label = "Phase 8" if getattr(model.config, "attention", None) == "linear" else _LABELS.get(kind, kind)
    return {"label": label, "kind": kind, "parameters": parameters(model)}


def _training_dtype(model, recipe) -> str | None:
    """The dtype that the run trains in on this device, so that the times are those of use."""
    from newllm_lib.device import probe

    if model_device(model).type == "cpu":
        return None
    return probe().dtype if recipe.dtype == "auto" else recipe.dtype


def _sample_documents(split, count: int) -> list[int]:
    """Indices of `count` documents, evenly spread over those of at least 24 tokens."""
    starts = np.asarray(split.document_starts, dtype=np.int64)
    lengths = np.diff(np.append(starts, len(split.ids) - 1))
    long_enough = np.flatnonzero(lengths >= 24)
    found = long_enough if len(long_enough) >= count else np.flatnonzero(lengths > 1)
    return [int(found[len(found) * i // count]) for i in range(min(count, len(found)))]


def prompts(split, tokenizer, documents: list[int], words: int = 12) -> list[list[int]]:
    """The beginning of each document as ids: a dialogue up to its first answer, else 12 tokens."""
    answer = token_id(tokenizer, ROLE_TOKENS["assistant"])
    found = []
    for document in documents:
        if document < len(split.document_starts):
            start = int(split.document_starts[document])
            ids = split.ids[start : start + 64].astype(int).tolist()
            length = ids.index(answer) + 1 if answer in ids else _to_the_words_end(tokenizer, ids, words + 1)
            found.append(ids[:length])
    return found


def _to_the_words_end(tokenizer, ids: list[int], length: int, most: int = 8) -> int:
    """The first length from `length` on at which no word is cut; `length` where none is near (Japanese)."""
    for end in range(length, min(length + most, len(ids))):
        following = tokenizer.decode([ids[end]])
        if not following[:1].isalnum():
            return end
    return length


def readable(tokenizer, ids: list[int]) -> str:
    """Token ids as text for people: control tokens as `user: ` and new lines."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    for token, shown in _SHOWN.items():
        text = text.replace(token, shown)
    return text.strip()


def validation_curve(run: Run) -> list[tuple[float, float]]:
    """(epoch, bits per byte on the validation split) of each evaluation in the run's metrics.jsonl."""
    drawn = {"epoch", "eval_bits_per_byte"}
    rows = (row for row in run.metrics() if drawn <= row.keys() and not row.get("final"))
    return [(row["epoch"], row["eval_bits_per_byte"]) for row in rows]


def trained_speed(run: Run) -> float | None:
    """Median tokens/s of the logged steps after the first tenth, which holds compilation."""
    speeds = [r["tokens_per_second"] for r in run.metrics() if "tokens_per_second" in r]
    return statistics.median(speeds[1 + len(speeds) // 10 :] or speeds) if speeds else None


def differences(a: dict, b: dict) -> dict:
    """(a - b) / b in % of all common figures; perplexity and accuracy only over the same tokens."""
    same_tokens = (a["vocab_size"], a["tokens"]) == (b["vocab_size"], b["tokens"])
    left_out = {"vocab_size", "batch_size", "length", "lower_cased"}
    if not same_tokens:
        left_out |= {"loss", "perplexity", "accuracy", "unk_share"}
    found = {}
    for key, value in a.items():
        other = b.get(key)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, other))
        if key not in left_out and numbers and other and math.isfinite(value) and math.isfinite(other):
            found[key] = 100 * (value - other) / abs(other)
    return found


def _notes(a: dict, b: dict) -> list[str]:
    """What a reader must know before comparing the figures."""
    notes = []
    if (a["bytes"], a["words"], a["lower_cased"]) != (b["bytes"], b["words"], b["lower_cased"]):
        notes.append("The two runs were evaluated on different text: their figures cannot be compared.")
    elif (a["vocab_size"], a["tokens"]) != (b["vocab_size"], b["tokens"]):
        notes.append(
            "The two runs have different tokenizers: compare bits per byte and word perplexity, not "
            f"perplexity. The unigram and bigram tables count {a['name']}'s tokens."
        )
    if abs(a["parameters"] - b["parameters"]) > 0.02 * b["parameters"]:
        notes.append("The two models differ by more than 2 % in parameters.")
    if "seed" in (a["protocol"], b["protocol"]):
        notes.append(
            "Seed protocol: perplexity over 1,000 words, a right guess of <unk> counts as right. "
            "Bits per byte charges each <unk> with the letters it lost."
        )
    return notes + [f"{e['name']}: {e['context_warning']}" for e in (a, b) if e.get("context_warning")]


def verdict(result: dict) -> str:
    """Plain sentences: which model predicts better and by how much, and whether both beat counting."""
    a, b = result["models"]
    ours = next((m for m in (a, b) if m["kind"] != "tiny_gpt2"), None)
    other = b if ours is a else a
    if ours is None or other["kind"] != "tiny_gpt2":  # no baseline among them: whichever is better
        ours, other = sorted((a, b), key=lambda m: m["bits_per_byte"])
    ours_name, other_name = (m["label"] if a["kind"] != b["kind"] else m["name"] for m in (ours, other))
    change = 100 * (ours["bits_per_byte"] - other["bits_per_byte"]) / other["bits_per_byte"]
    figures = f"{ours['bits_per_byte']:.4f} against {other['bits_per_byte']:.4f} bits per byte"
    figures += f" on the {result['split']} split"
    if change < -_NO_DIFFERENCE:
        first = f"{ours_name} predicts better than {other_name}: {figures} ({change:+.1f} %)."
    elif change > _NO_DIFFERENCE:
        first = f"{ours_name} is not below {other_name}: {figures} ({change:+.1f} %)."
    else:
        first = (
            f"{ours_name} is not below {other_name}; the two predict equally well: {figures} "
            f"({change:+.2f} %)."
        )
    return " ".join([first, *(_against(name, result) for name in result["baselines"])])


def _against(baseline: str, result: dict) -> str:
    """Whether the models are below a baseline, in one sentence."""
    limit = result["baselines"][baseline]["bits_per_byte"]
    above = [m for m in result["models"] if not m["bits_per_byte"] < limit]
    if not above:
        return f"Both are below the {baseline} table ({limit:.4f})."
    if len(above) == 2:
        return f"Neither is below the {baseline} table ({limit:.4f}): train longer."
    below = next(m for m in result["models"] if m is not above[0])
    different = below["kind"] != above[0]["kind"]
    names = (m["label"] if different else m["name"] for m in (below, above[0]))
    return (
        f"{next(names)} is below the {baseline} table ({limit:.4f}), {next(names)} is not: train it longer."
    )
