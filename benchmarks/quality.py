"""Who predicts best at the same parameters, tokens and tuning effort: New-LLM and its peers on the same text.

Every model gets a grid of three settings. The one that is best on the validation text is trained again, on
that text too and with other seeds, and the test text, which shares no document with either, is reported.
New-LLM, its original recurrence and TinyGPT2 are trained by `newllm train`'s own path and measured by `newllm
evaluate`'s; modern attention and the LSTM, which the library does not have, by a small loop (`peer_loop`)
with the library's blocks, optimizer and schedule. Each training is a process of its own, and a line of a
journal when it is done: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks import common, table
from benchmarks.common import Rows
from benchmarks.corpus import CHOOSE, FINAL, LESS_LONGEST, open_corpus
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError

VOCABULARY = 4096
SEEDS = (0, 1, 2)
SEVERAL_SEEDS = ("new_llm", "attention", "attention_helped")  # the comparison that counts; others: once
SMOKE_STEPS = 3
PEERS = ("attention", "attention_helped", "lstm")  # trained by `peer_loop`

_ALL = {  # of the recipe, for everyone
    "epochs": 6,
    "schedule": "wsd",
    "min_learning_rate_ratio": 0.0,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "evals_per_epoch": 1,
    "save_minutes": 1000,
    "keep_checkpoints": 1,
    "sample_tokens": 0,
    "force": True,
}
_RATES = {"4M": 1.0, "10M": 0.7, "25M": 0.5}  # AdamW's rate falls with the width; Muon's does not
_DECAY = {"dropout": 0.0, "weight_decay": 0.2}
_LIGHT, _DROPOUT = {"dropout": 0.05}, {"dropout": 0.1}
# The more parameters for the same text, the more of it; docs/log/2026-11.md has what else was tried.
_REGULARISATIONS = {
    "4M": (_DECAY, _LIGHT, _DROPOUT),
    "10M": (_DECAY, _DECAY | _LIGHT, _DECAY | _DROPOUT),
    "25M": (_DECAY | _LIGHT, _DECAY | _DROPOUT, _DROPOUT),
}
_MUON = {"optimizer": "muon", "learning_rate": 0.014, "muon_learning_rate": 0.04, "warmup_steps": 60}
_SLOWER = {"optimizer": "muon", "learning_rate": 4e-3, "muon_learning_rate": 0.014, "warmup_steps": 100}
_ADAMW = {"optimizer": "adamw", "batch_size": 64, "max_seq_length": 128, "warmup_steps": 100}
_SHORT = {"batch_size": 128, "max_seq_length": 128}
_LONG = {"batch_size": 32, "max_seq_length": 512}  # as many tokens a step, for those who see only a block
_GRID = {
    "new_llm": [_MUON | _SHORT | {"carry_state": True}] * 3,
    "attention": [_MUON | _LONG] * 3,
    "attention_helped": [_MUON | _LONG] * 3,  # by convolutions and skips
    "tiny_gpt2": [_SLOWER | _LONG | {"batch_size": 16}] * 3,
    "lstm": [
        _ADAMW | {"learning_rate": rate, "dropout": p, "carry_state": True}
        for rate, p in ((3e-3, 0.1), (6e-3, 0.1), (3e-3, 0.2))
    ],
    "seed": [
        _ADAMW | {"learning_rate": rate, "dropout": p, "carry_state": True}
        for rate, p in ((1e-3, 0.1), (2e-3, 0.1), (1e-3, 0.0))
    ],
}
MODELS = tuple(_GRID)


@dataclass(frozen=True)
class Trial:
    """One training: a model of a size on a corpus, with keys of the recipe."""

    corpus: str
    model: str
    size: str
    keys: dict = field(default_factory=dict)
    seed: int = 0
    final: bool = False  # trained on the validation text too, and reported
    smoke: bool = False  # a few steps only: the path, not the result

    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


# --- the command --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser, "docs/images/quality.png")
    for name, known in (("models", MODELS), ("sizes", tuple(_RATES)), ("corpora", ("chitchat", "wikitext2"))):
        parser.add_argument(f"--{name}", nargs="+", metavar="NAME", help=f"some of {' '.join(known)}")
    parser.add_argument(
        "--minutes", type=float, help="begin no training after this time; the same command goes on later"
    )
    parser.add_argument("--jobs", type=common.positive, default=1, help="trainings side by side (default: 1)")
    parser.add_argument(
        "--together", type=common.positive, default=1, help="so many times --jobs (default: 1)"
    )
    for name, default, what in (
        ("journal", "benchmarks/quality.jsonl", "what was trained"),
        ("data", "benchmarks/.data", "folder of the texts, made when missing"),
    ):
        parser.add_argument(f"--{name}", default=default, help=f"{what} (default: {default})")
    parser.add_argument("--text", help="folder with WikiText-2's files (for --corpora wikitext2)")
    parser.add_argument(
        "--smoke", action="store_true", help="three steps of everything: whether it runs, not how good it is"
    )
    parser.add_argument(
        "--settled",
        action="store_true",
        help="no grids: each grid's first setting, which earlier trials found best",
    )
    parser.add_argument("--no_record", action="store_true", help="train only; no rows are written")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> dict | None:
    data, text = Path(arguments.data), arguments.text and Path(arguments.text)
    if arguments.one:
        trial = Trial(**json.loads(arguments.one))
        print(json.dumps(trained(trial, open_corpus(trial.corpus, data, text))))
        return None
    contests = [
        (corpus, model, size)
        for size in common.choose(arguments.sizes or ["4M"], tuple(_RATES), "size")
        for corpus in arguments.corpora or ["chitchat"]
        for model in common.choose(arguments.models, MODELS, "model")
    ]
    journal, what = Path(arguments.journal), {"smoke": arguments.smoke, "settled": arguments.settled}
    for corpus in dict.fromkeys(corpus for corpus, _, _ in contests):
        open_corpus(corpus, data, text)  # once, not by each process
    say(f"Training {', '.join(' '.join(contest) for contest in contests)}; journal: {journal}")
    words = ["--data", str(data), *(["--text", str(text)] if text else [])]
    with _alone(journal):
        train_missing(
            journal,
            contests,
            words,
            arguments.jobs * arguments.together,
            common.seconds(arguments.minutes),
            **what,
        )
    left = [" ".join(contest) for contest in contests if missing(journal, *contest, **what)]
    if left:
        say(f"Not complete yet: {', '.join(left)}. The same command goes on.")
    rows = Rows("quality")
    report(journal, rows, contests, **what)
    if arguments.no_record or not rows.rows:
        return {"rows": []} if arguments.json else None
    return table.record_and_draw(rows, arguments)


@contextmanager
def _alone(journal: Path) -> Iterator[None]:
    """Nobody else trains for this journal meanwhile; the lock goes with the process, however it ends."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal.with_name(f".{journal.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NewLLMError(
                f"Another process trains for {journal}: wait for it, or give another --journal."
            ) from error
        yield


# --- what is trained ----------------------------------------------------------------------------------------


def grid(corpus: str, model: str, size: str, smoke: bool = False) -> list[Trial]:
    """The three settings tried for each model, with equal regularisation for those trained with Muon.

    Raises:
        UsageError: no such model or size.
    """
    if model not in _GRID or size not in _RATES:
        raise UsageError(
            f"No model {model!r} of size {size!r}: use {', '.join(_GRID)} and {', '.join(_RATES)}."
        )
    found = []
    for choice, regularisation in zip(_GRID[model], _REGULARISATIONS[size], strict=True):
        keys = choice | (regularisation if choice["optimizer"] == "muon" else {})
        if model == "new_llm" and size == "4M":
            keys = keys | {"num_layers": 6}  # the larger sizes have their own depth
        keys = keys | {"learning_rate": keys["learning_rate"] * _RATES[size]}
        found.append(Trial(corpus, model, size, keys, smoke=smoke))
    return found


def missing(
    journal: Path, corpus: str, model: str, size: str, smoke: bool = False, settled: bool = False
) -> list[Trial]:
    """What has still to be trained for this contest: its grid, then the best of it with the other seeds.

    Args:
        settled: no grid, only the seeds of its first setting.
    """
    done = {trial.key() for trial, _ in read(journal)}
    tried = grid(corpus, model, size, smoke)
    left = [trial for trial in tried if trial.key() not in done]
    if left and not settled:
        return left
    best = tried[0] if settled else chosen(journal, corpus, model, size, smoke)
    return [trial for trial in _seeds(best) if trial.key() not in done]


def chosen(journal: Path, corpus: str, model: str, size: str, smoke: bool = False) -> Trial:
    """The trial of the grid that predicts the validation text best."""
    keys = {trial.key() for trial in grid(corpus, model, size, smoke)}
    tried = [(trial, result) for trial, result in read(journal) if trial.key() in keys]
    return min(tried, key=lambda pair: pair[1]["validation"])[0]


def _seeds(best: Trial) -> list[Trial]:
    """The chosen settings with other seeds, trained on the validation text too, which has done its work."""
    seeds = SEEDS if best.model in SEVERAL_SEEDS else SEEDS[:1]
    return [replace(best, seed=seed, final=True) for seed in seeds]


def train_missing(
    journal: Path,
    contests: list[tuple[str, str, str]],
    words: list[str],
    at_once: int = 1,
    seconds: float = float("inf"),
    **what: bool,
) -> None:
    """Train what the journal lacks, in order, until it is complete or the time is over.

    Args:
        words: flags for the processes that train.
        at_once: trainings side by side: one alone would leave most of a GPU idle.
        what: `smoke` and `settled` of `missing`.

    Raises:
        NewLLMError: some failed; the others are in the journal.
    """
    end, failed, under_way = time.monotonic() + seconds, [], {}
    with ThreadPoolExecutor(at_once) as pool:
        while True:
            for trial in [trial for contest in contests for trial in missing(journal, *contest, **what)]:
                if (
                    len(under_way) < at_once
                    and time.monotonic() < end
                    and trial not in [*under_way.values(), *failed]
                ):
                    under_way[pool.submit(in_a_process, trial, words)] = trial
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                if not _finish(journal, trial := under_way.pop(future), future):
                    failed.append(trial)
    if failed:
        raise NewLLMError(f"{len(failed)} trainings failed, as said above: the same command goes on.")


def _finish(journal: Path, trial: Trial, future: Future) -> bool:
    """Note what a trial gave; False if it failed, which is said."""
    name = f"{trial.corpus} {trial.model} {trial.size}, seed {trial.seed}, {_in_words(trial.keys)}"
    try:
        result = future.result()
    except NewLLMError as error:
        say(f"{name}: {error}")
        return False
    write(journal, trial, result)
    validation, test = (f"{result[part]:.4f}" for part in ("validation", "test"))
    say(f"{name}: validation {validation}, test {test} bits per byte, {result['seconds']:.1f} s")
    return True


def _in_words(keys: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in keys.items())


def in_a_process(trial: Trial, words: list[str]) -> dict:
    """`trained` in a process of its own."""
    return common.result_of(common.command("quality", "--one", trial.key(), *words), "Training")


# --- one training -------------------------------------------------------------------------------------------


def trained(trial: Trial, places: dict[str, Path]) -> dict:
    """Train, then measure: bits per byte of validation and test (and, where the result counts, of the test
    text less its longest document), seconds, steps, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        keys = _ALL | trial.keys | {"seed": trial.seed, "output_dir": f"{folder}/run"}
        keys |= {"data_dir": str(places[FINAL if trial.final else CHOOSE])}
        keys |= {"max_steps": SMOKE_STEPS} if trial.smoke else {}
        if trial.model in PEERS:
            return _trained_peer(trial, keys, places)
        return _trained_by_the_library(trial, keys, places)


def _trained_by_the_library(trial: Trial, keys: dict, places: dict[str, Path]) -> dict:
    """`newllm train`, then `newllm evaluate --checkpoint last` ("best" may be chosen on learned text)."""
    from benchmarks.peers import sized_recipe
    from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run
    from newllm_lib.training import train
    from newllm_lib.training.model_config import count_parameters, model_config

    recipe = sized_recipe(trial.model, trial.size, VOCABULARY, **keys)
    began = time.monotonic()
    run = train(recipe)
    seconds = time.monotonic() - began
    found = {
        split: evaluate_run(run, EvaluationData(split), which="last") for split in ("validation", "test")
    }
    if trial.final:
        found["test_less_longest"] = evaluate_run(
            run, EvaluationData("test", data_dir=places[LESS_LONGEST]), which="last"
        )
    parameters = count_parameters(model_config(recipe, found["test"]["vocab_size"]))
    steps = max(row["step"] for row in run.metrics())
    about = {"seconds": seconds, "steps": steps, "parameters": parameters}
    return {name: figures["bits_per_byte"] for name, figures in found.items()} | about


def _trained_peer(trial: Trial, keys: dict, places: dict[str, Path]) -> dict:
    import torch

    from benchmarks.peer_loop import bits_per_byte, train_peer
    from benchmarks.peers import build_peer
    from newllm_lib.data import load_split, prepare
    from newllm_lib.recipe import load_recipe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    recipe = load_recipe("demo", {"sized_for": "h100", "vocab_size": VOCABULARY, **keys})
    torch.manual_seed(trial.seed)
    with closing(prepare(recipe)) as data:
        model = build_peer(trial.model, trial.size, len(data.tokenizer), recipe.dropout)
        about = train_peer(model, recipe, data, device)
        splits = {"validation": data.validation, "test": data.test}
        if trial.final:
            rest = replace(recipe, data_dir=str(places[LESS_LONGEST]))
            splits["test_less_longest"] = load_split(rest, data.tokenizer, "test")
        # in float32, as `evaluate_run` measures
        found = {name: bits_per_byte(model, split, recipe.max_seq_length) for name, split in splits.items()}
    return found | about


# --- what came out ------------------------------------------------------------------------------------------


def report(
    journal: Path,
    rows: Rows,
    contests: list[tuple[str, str, str]],
    smoke: bool = False,
    settled: bool = False,
) -> list[dict]:
    """Rows and a summary of each complete contest: test bits per byte, mean and deviation over seeds."""
    found = []
    for corpus, model, size in contests:
        if missing(journal, corpus, model, size, smoke, settled):
            continue
        tried = grid(corpus, model, size, smoke)
        best = tried[0] if settled else chosen(journal, corpus, model, size, smoke)
        keys = {trial.key() for trial in _seeds(best)}
        results = [result for trial, result in read(journal) if trial.key() in keys]
        choice = "settings as docs/log/2026-11.md found" if settled else f"best of {len(tried)} settings"
        note = (
            f"{results[0]['parameters']:,} parameters; {len(results)} seeds; {choice}: {_in_words(best.keys)}"
        )
        for key, what in (("test", "test"), ("test_less_longest", "test less its longest document")):
            if any(key not in result for result in results):  # a journal of an older version
                continue
            values, of = [result[key] for result in results], f"{corpus} {what}, {size}"
            rows.add(model, f"bits per byte, {of}", statistics.mean(values), "bit/byte", note)
            if len(values) > 1:
                rows.add(model, f"deviation over seeds, {of}", statistics.stdev(values), "bit/byte", note)
        mean = statistics.mean(result["test"] for result in results)
        found.append({"corpus": corpus, "model": model, "size": size, "test": mean, "seeds": len(results)})
    return found


def read(journal: Path) -> list[tuple[Trial, dict]]:
    """Every trained trial with its result; lines of versions that trained otherwise are skipped."""
    if not journal.is_file():
        return []
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [(Trial(**line["trial"]), line["result"]) for line in lines if "keys" in line["trial"]]


def write(journal: Path, trial: Trial, result: dict) -> None:
    """Append one trial."""
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"trial": asdict(trial), "result": result}) + "\n")
