"""Who predicts best at the same parameters, tokens and tuning effort: New-LLM and its peers on the same text.

Every model gets a grid of as many settings. The one that is best on the validation text is trained again, on that text too and
with other seeds, and the test text, which shares no document with either, is reported. A trial is a line of a journal: the same
command goes on where it stopped, and several may work on one journal at once (each trial is locked by one of them).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from newllm_lib.benchmarks.rows import Rows
from newllm_lib.console import say
from newllm_lib.errors import UsageError

SEVERAL_SEEDS = ("new_llm", "attention")  # the comparison that counts; the others are trained once
SEEDS = (0, 1, 2)
SMOKE_STEPS = 3


@dataclass(frozen=True)
class Trial:
    """One training: a model of a size on a corpus, and how (`settings` of `fit.Settings`, `changes` of `peers.build`)."""

    corpus: str
    model: str
    size: str
    dropout: float
    changes: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    smoke: bool = False  # a few steps only: the path, not the result

    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def contest(self) -> tuple[str, str, str]:
        return self.corpus, self.model, self.size


def grid(corpus: str, model: str, size: str, smoke: bool = False) -> list[Trial]:
    """The settings that are tried: six at 4M parameters, three at the larger sizes, as many for each model.

    Raises:
        UsageError: no such model or size.
    """
    if model not in _GRID or size not in _RATES:
        raise UsageError(f"No model {model!r} of size {size!r}: use {', '.join(_GRID)} and {', '.join(_RATES)}.")
    tried = [
        Trial(corpus, model, size, choice.get("dropout", 0.1), choice.get("changes", {}), {**_of(choice), "seed": 0}, smoke)
        for choice in _GRID[model]
    ]
    if size == "4M":
        return tried
    factor = _RATES[size]
    return [
        replace(
            trial, changes={name: value for name, value in trial.changes.items() if name != "layers"},
            settings={**trial.settings, "learning_rate": factor * trial.settings["learning_rate"]},
        )
        for trial in tried[:3]
    ]  # fmt: skip


def _of(choice: dict) -> dict:
    return {name: value for name, value in choice.items() if name not in ("dropout", "changes")}


_RATES = {"4M": 1.0, "10M": 0.7, "25M": 0.5}  # AdamW's rate falls with the width; Muon's does not
_FAST = {"learning_rate": 0.014, "muon_learning_rate": 0.04, "warmup": 60, "rows": 128}
_MUON = {"learning_rate": 6e-3, "muon_learning_rate": 0.02, "rows": 64}
_SLOWER = {**_MUON, "learning_rate": 4e-3, "muon_learning_rate": 0.014}
_ADAMW = {"optimizer": "adamw", "learning_rate": 6e-3, "rows": 64}
_DEEPER = {"dropout": 0.05, "changes": {"layers": 6}}  # at 4M; the larger sizes have their own depth
_BLOCKS = {"dropout": 0.05, "changes": {"layers": 6, "mlp_conv": True, "embedding_skip": True}}
_WORDS = {**_BLOCKS, "changes": {**_BLOCKS["changes"], "word_memory": 1000.0}}
_HELPED = {"dropout": 0.05, "changes": {"helped": True}}  # by what New-LLM's blocks have too
_LONG = {"rows": 16, "time": 512}  # as many tokens a step, for those who see no further than a block
_LONGER = {"rows": 32, "time": 512}
_ATTENTION = [
    {**_FAST, **_LONGER, **_HELPED}, {**_MUON, **_LONG, **_HELPED}, {**_MUON, **_LONG}, {**_MUON, **_LONG, "weight_decay": 0.3},
    {**_MUON, **_LONG, **_DEEPER}, {**_ADAMW, **_LONG},
]  # fmt: skip
# The first of each was best in the trials of docs/LOG.md.
_GRID = {
    "new_llm": [
        {**_FAST, **_WORDS}, {**_MUON, **_WORDS}, {**_FAST, **_BLOCKS}, {**_MUON, **_DEEPER}, {**_FAST, **_WORDS, "dropout": 0.1},
        _ADAMW,
    ],
    "attention": _ATTENTION,
    "attention_words": [{**choice, "changes": {**choice.get("changes", {}), "words": 1000.0}} for choice in _ATTENTION],
    "tiny_gpt2": [
        {**_SLOWER, **_LONG}, {**_MUON, **_LONG}, {**_SLOWER, **_LONG, "weight_decay": 0.3}, _SLOWER,
        {**_ADAMW, **_LONG, "learning_rate": 3e-3}, {**_ADAMW, **_LONG},
    ],
    "lstm": [{**_ADAMW, "learning_rate": rate, "dropout": p} for p in (0.1, 0.2) for rate in (3e-3, 6e-3, 1.5e-3)],
    "seed": [{**_ADAMW, "learning_rate": rate, "dropout": p} for p in (0.1, 0.0) for rate in (1e-3, 2e-3, 5e-4)],
}  # fmt: skip


def run(
    journal: Path, data: Path, *, corpora, models, sizes, seconds: float = float("inf"), device: str | None = None,
    together: int = 1, smoke: bool = False, text: Path | None = None, settled: bool = False,
) -> None:  # fmt: skip
    """Train what is missing in the journal, in order, until it is complete or the time is over (a trial is never broken off).

    Args:
        together: trainings at once on this GPU: each alone would leave most of it idle.
        settled: no grids, only the seeds of each grid's first setting.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    end = time.monotonic() + seconds
    contests = [(c, m, s) for s in sizes for c in corpora for m in models]
    journal.parent.mkdir(parents=True, exist_ok=True)
    under_way: list[_UnderWay] = []
    while True:
        while len(under_way) < together and time.monotonic() < end:
            begun = _begun(journal, contests, smoke, settled, lambda trial: _training(trial, data, device, text))
            if begun is None:
                break
            under_way.append(begun)
        if not under_way:
            return
        for one in [one for one in under_way if not one.training.advance()]:
            _finish(journal, one)
            under_way.remove(one)
        if device == "cuda":
            time.sleep(0.002)


@dataclass
class _UnderWay:
    """A training and the lock that keeps others from it."""

    trial: Trial
    training: object
    lock: contextlib.ExitStack


def _begun(journal: Path, contests, smoke: bool, settled: bool, make) -> _UnderWay | None:
    """Begin the first missing trial that nobody trains; None if there is none."""
    for trial in (t for contest in contests for t in missing(journal, *contest, smoke, settled)):
        lock = contextlib.ExitStack()
        if lock.enter_context(_alone(journal, trial.key())) and trial.key() not in {t.key() for t, _ in read(journal)}:
            training = make(trial)
            training.begin()
            return _UnderWay(trial, training, lock)
        lock.close()
    return None


def _training(trial: Trial, data: Path, device: str, text):
    import torch

    from newllm_lib.benchmarks import peers
    from newllm_lib.benchmarks.corpus import open_corpus
    from newllm_lib.benchmarks.fit import Settings, Training

    corpus, settings = open_corpus(trial.corpus, data, text), Settings(**trial.settings)
    if trial.smoke:
        corpus.ids = {part: ids[:20_000] for part, ids in corpus.ids.items()}
    torch.manual_seed(settings.seed)
    model = peers.build(trial.model, trial.size, corpus.vocabulary, settings.time, trial.dropout, **trial.changes)
    return Training(model, corpus, settings, device, SMOKE_STEPS if trial.smoke else None)


def _finish(journal: Path, one: _UnderWay) -> None:
    result, trial = one.training.result(), one.trial
    write(journal, trial, result)
    one.lock.close()
    say(
        f"{trial.corpus} {trial.model} {trial.size} {trial.settings} dropout {trial.dropout} {trial.changes or ''}: "
        f"validation {result['validation']:.4f}, test {result['test']:.4f} bits per byte, {result['seconds']:.1f} s"
    )


def missing(
    journal: Path, corpus: str, model: str, size: str, smoke: bool = False, settled: bool = False
) -> list[Trial]:
    """What has still to be trained for this contest: its grid, then the best of it with the other seeds."""
    done = {trial.key() for trial, _ in read(journal)}
    tried = grid(corpus, model, size, smoke)
    left = [t for t in tried if t.key() not in done]
    if left and not settled:
        return left
    best = tried[0] if settled else chosen(journal, corpus, model, size, smoke)[0]
    return [t for t in _seeds(best) if t.key() not in done]


def chosen(journal: Path, corpus: str, model: str, size: str, smoke: bool = False) -> tuple[Trial, dict]:
    """The trial of the grid that predicts the validation text best, and its result."""
    keys = {t.key() for t in grid(corpus, model, size, smoke)}
    return min(((t, r) for t, r in read(journal) if t.key() in keys), key=lambda pair: pair[1]["validation"])


def _seeds(best: Trial) -> list[Trial]:
    """The chosen settings with other seeds, trained on the validation text too, which has done its work."""
    seeds = SEEDS if best.model in SEVERAL_SEEDS else SEEDS[:1]
    return [replace(best, settings={**best.settings, "train_on": ["train", "validation"], "seed": seed}) for seed in seeds]


def report(
    journal: Path, rows: Rows, *, corpora, models, sizes, smoke: bool = False, settled: bool = False
) -> list[dict]:
    """Rows and a summary of every contest that is complete: the test text's bits per byte, mean and deviation over seeds."""
    found = []
    for corpus, model, size in ((c, m, s) for s in sizes for c in corpora for m in models):
        if missing(journal, corpus, model, size, smoke, settled):
            continue
        tried = grid(corpus, model, size, smoke)
        best = tried[0] if settled else chosen(journal, corpus, model, size, smoke)[0]
        keys = {t.key() for t in _seeds(best)}
        results = [r for t, r in read(journal) if t.key() in keys]
        result = results[0]
        test = [r["test"] for r in results]
        how = ", ".join(f"{name} {value}" for name, value in {**best.settings, "dropout": best.dropout, **best.changes}.items())
        choice = "settings as docs/LOG.md found" if settled else f"best of {len(tried)} settings"
        note = f"{result['parameters']:,} parameters; {len(test)} seeds; {choice}: {how}"
        rows.add(model, f"bits per byte, {corpus} test, {size}", statistics.mean(test), "bit/byte", note)
        if len(test) > 1:
            rows.add(model, f"deviation over seeds, {corpus} test, {size}", statistics.stdev(test), "bit/byte", note)
        summary = {"corpus": corpus, "model": model, "size": size, "parameters": result["parameters"], "settings": how}
        found.append({**summary, "test": statistics.mean(test), "seeds": len(test)})
    return found


def read(journal: Path) -> list[tuple[Trial, dict]]:
    """Every trial that was trained, with its result."""
    if not journal.is_file():
        return []
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [(Trial(**line["trial"]), line["result"]) for line in lines]


def write(journal: Path, trial: Trial, result: dict) -> None:
    """Append one trial."""
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"trial": asdict(trial), "result": result}) + "\n")


@contextlib.contextmanager
def _alone(journal: Path, key: str):
    """Whether nobody else trains this trial; the lock goes with the process, however it ends."""
    import hashlib

    name = f".{journal.name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.lock"
    with open(journal.with_name(name), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
