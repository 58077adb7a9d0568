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

SEVERAL_SEEDS = ("new_llm", "attention", "attention_helped")  # the comparison that counts; the others are trained once
SEEDS = (0, 1, 2)
SMOKE_STEPS = 3
WAIT = 1.0  # seconds


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
    """The three settings that are tried: as many for each model, the same regularisation for those trained with Muon.

    Raises:
        UsageError: no such model or size.
    """
    if model not in _GRID or size not in _RATES:
        raise UsageError(f"No model {model!r} of size {size!r}: use {', '.join(_GRID)} and {', '.join(_RATES)}.")
    found = []
    for choice, regularisation in zip(_GRID[model], _REGULARISATIONS[size], strict=True):
        settings = {"seed": 0, **choice}
        changes = dict(settings.pop("changes", {}))
        if settings.get("optimizer") != "adamw":
            settings |= regularisation
        if size != "4M":
            changes.pop("layers", None)  # the larger sizes have their own depth
        settings["learning_rate"] *= _RATES[size]
        found.append(Trial(corpus, model, size, settings.pop("dropout", 0.1), changes, settings, smoke))
    return found


_RATES = {"4M": 1.0, "10M": 0.7, "25M": 0.5}  # AdamW's rate falls with the width; Muon's does not
_LIGHT, _DROPOUT = {"dropout": 0.05}, {"dropout": 0.1}
_DECAY = {"dropout": 0.0, "weight_decay": 0.3, "muon_weight_decay": 0.2}
_REGULARISATIONS = {  # the more parameters for the same text, the more of it; docs/LOG.md has what else was tried
    "4M": (_DECAY, _LIGHT, _DROPOUT),
    "10M": (_DECAY, _DECAY | _LIGHT, _DECAY | _DROPOUT),
    "25M": (_DECAY | _LIGHT, _DECAY | _DROPOUT, _DROPOUT),
}
_MUON = {"learning_rate": 0.014, "muon_learning_rate": 0.04, "warmup": 60, "rows": 128}
_SLOWER = {"learning_rate": 4e-3, "muon_learning_rate": 0.014, "rows": 16, "time": 512}
_ADAMW = {"optimizer": "adamw", "learning_rate": 6e-3, "rows": 64}
_LONG = {"rows": 32, "time": 512}  # as many tokens a step, for those who see no further than a block
_GRID = {
    "new_llm": [{**_MUON, "changes": {"layers": 6, "mlp_conv": True, "embedding_skip": True}}] * 3,
    "attention": [{**_MUON, **_LONG}] * 3,
    "attention_helped": [{**_MUON, **_LONG, "changes": {"helped": True}}] * 3,  # by what New-LLM's blocks have beside the context
    "tiny_gpt2": [_SLOWER] * 3,
    "lstm": [{**_ADAMW, "learning_rate": rate, "dropout": p} for rate, p in ((3e-3, 0.1), (6e-3, 0.1), (3e-3, 0.2))],
    "seed": [{**_ADAMW, "learning_rate": rate, "dropout": p} for rate, p in ((1e-3, 0.1), (2e-3, 0.1), (1e-3, 0.0))],
}


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
            if time.monotonic() >= end or not any(missing(journal, *contest, smoke, settled) for contest in contests):
                return
            time.sleep(WAIT)  # for what others train: the seeds come after a grid's last trial
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
        how = ", ".join(f"{name} {value}" for name, value in {**best.settings, "dropout": best.dropout, **best.changes}.items())
        choice = "settings as docs/LOG.md found" if settled else f"best of {len(tried)} settings"
        note = f"{result['parameters']:,} parameters; {len(results)} seeds; {choice}: {how}"
        for key, what in (("test", "test"), ("test_less_longest", "test less its longest document")):
            if any(key not in r for r in results):  # a journal of an older version
                continue
            values, of = [r[key] for r in results], f"{corpus} {what}, {size}"
            rows.add(model, f"bits per byte, {of}", statistics.mean(values), "bit/byte", note)
            if len(values) > 1:
                rows.add(model, f"deviation over seeds, {of}", statistics.stdev(values), "bit/byte", note)
        summary = {"corpus": corpus, "model": model, "size": size, "parameters": result["parameters"], "settings": how}
        found.append({**summary, "test": statistics.mean(r["test"] for r in results), "seeds": len(results)})
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
