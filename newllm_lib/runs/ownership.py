"""What on the disk is ours: only that is ever replaced or deleted.

Every folder that we make carries `.newllm.json`: what it is, of which run, since when, by which version.
Version 0.1.0 did not write it; what that made is known by its own records. There are two kinds of folders. An
export, a mixture and the parts of a run (`best/`, `checkpoint-N/` ...) are replaced whole, so nothing else
may lie in them. The folder of a run and its mirror are shared: ours are the names in `RUN_FILES` and
`RUN_PART`, and whatever else lies there stays.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from newllm_lib import __version__
from newllm_lib.errors import UsageError

MARK = ".newllm.json"
MANIFEST = "MANIFEST.json"
MANIFESTS = (MANIFEST, "WHOLE.json")  # the second: as version 0.1.0 called it
LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)-(?P<start>\d+)-\d+$")

RUN_FILES = frozenset(
    (
        "recipe.yaml",
        "data_report.json",
        "status.json",
        "run.lock",
        "save.request",
        "train.log",
        "train.log.1",
        "metrics.jsonl",
        "training_log.json",
        "samples.jsonl",
        "timing.json",
        "samples.md",
        "curves.png",
        "report.json",
        "preferences.json",
        "card.md",
        "comparison.md",
        "comparison.png",
        "live.png",
        "mirror.json",
        "mirror.lock",
        "mirror.start",
    )
)
# of them, what belongs to one machine and is not copied
LOCAL_FILES = ("run.lock", "save.request", "mirror.json", "mirror.lock", "mirror.start")
RUN_PART = re.compile(r"best|last|base|(superseded-)?checkpoint-\d+")

_LARGEST_RECORD = 2**26  # bytes
_TITLES = {
    "run": "a run",
    "mirror": "the copy of a run",
    "export": "an export",
    "mixture": "a mixture",
    "benchmark": "a benchmark",
}
# a system puts them anywhere
_LITTER = frozenset((".ipynb_checkpoints", ".DS_Store", "desktop.ini", "Thumbs.db"))
_STATUS_KEYS = {"state", "message", "pid", "started", "updated", "step", "total_steps"}
_RECORDED_RECIPE = re.compile(r"(version|recipe): \S+\n")  # how `Recipe.to_yaml` begins
# What saves of a model, of its tokenizer and of the trainer's state consist of.
_MODEL_FILES = re.compile(
    r"WHOLE\.json|MANIFEST\.json|SUMS\.json|config\.json|generation_config\.json|chat_template\.jinja|tokenizer(_config)?\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|tokenizer\.model"
    r"|(model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?|(adapter/)?adapter_(config\.json|model\.safetensors)"
    r"|trainer_state\.json|progress\.json|carried_state\.safetensors|(optimizer|scheduler|scaler)[\w.-]*|rng_state[\w.-]*"
)
_EXPORT_FILES = re.compile(rf"README\.md|recipe\.yaml|[^/]+\.gguf|{_MODEL_FILES.pattern}")
_MIXTURE_FILES = re.compile(r"(train|validation|test)\.jsonl|mix\.json")


def mark_text(
    what: str, run: str | None = None, since: str | None = None, files: list[str] | None = None, **more: dict
) -> str:
    """What `.newllm.json` says.

    Args:
        what: "run", "mirror", "export", "mixture" or "benchmark".
        run: the name of the run that it is, or was made of.
        since: when it became ours (default: now).
        files: of a folder that is replaced whole, the files that we wrote.
        more: of a mirror its `owner`, of a run its `copies` (see `mirror.owner`).
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"what": what, "run": run, "since": since or now, "version": __version__, **more}
    return (
        json.dumps(about | ({"files": files} if files is not None else {}), indent=1, ensure_ascii=False)
        + "\n"
    )


def read_mark(folder: Path) -> dict | None:
    """What the folder's `.newllm.json` says; None where there is none that could be ours."""
    mark = read_json(folder / MARK)
    return mark if isinstance(mark, dict) and mark.get("what") in _TITLES else None


def foreign_in(folder: Path, what: str | None = None) -> Iterator[str]:
    """Relative names of all in `folder` that we did not write as `what` (None: as it declares).

    Files, links and empty folders; of what a system leaves in every folder nothing.
    """
    is_ours = _judge(folder, what)
    for name in _leaves(folder):
        path = PurePosixPath(name)
        if not (
            _LITTER & set(path.parts)
            or LEFTOVER.match(path.parts[0])
            or name in (MARK, *MANIFESTS)
            or is_ours(name)
        ):
            yield name


def check_shared(folder: Path, what: str, flag: str) -> None:
    """Refuse a run's folder, or a copy's, where something of another lies under a name that we would write.

    Args:
        what: "run" or "mirror".
        flag: how the user named the folder.

    Raises:
        UsageError: names what is in the way, and a free name.
    """
    path = real_folder(folder, flag)
    if not path.is_dir():
        return
    instead = f"nothing was changed. Give another {flag}"
    instead += ", or the run another name." if what == "mirror" else f", e.g. {free_name(folder)}."
    mark = read_mark(path)
    if mark is not None and mark["what"] != what:
        raise UsageError(f"{folder} is {_TITLES[mark['what']]}, not {_TITLES[what]}: {instead}")
    if what == "mirror" and mark is None and (path / "run.lock").exists():
        raise UsageError(f"{folder} is a run that was trained there, not the copy of one: {instead}")
    ours = mark is not None or _has_records(path)
    for entry in sorted(path.iterdir()):
        if entry.name == "run.lock" and entry.is_file() and not entry.stat().st_size:
            continue  # another process takes the run this instant
        if _is_of_runs(entry.name) and not (ours and _is_as_we_write_it(entry)):
            name = f"{entry.name}/" if entry.is_dir() else entry.name
            raise UsageError(f"{folder} holds {name}, which no {kind_of(what)} of ours wrote: {instead}")


def check_plain_name(name: str, flag: str) -> None:
    """Refuse what is no plain name of a folder: empty, hidden, like a flag, too long, or leading elsewhere.

    Raises:
        UsageError: says so.
    """
    odd = name.startswith((".", "-")) or any(c in "/\\" or not c.isprintable() for c in name)
    if odd or not name.strip() or len(os.fsencode(name)) > 200:
        raise UsageError(
            f"{flag} {name!r} is no name: give a word such as my_run (letters, digits, - _ .). A folder goes "
            "into --output_dir."
        )


def free_name(path: Path) -> str:
    """A name beside `path` (in it, where it has none of its own, as `.`) that is not taken, to propose."""
    path, number = Path(path), 2
    place = path if path.name not in ("", "..") else path / "newllm"
    stem, suffix = (place.stem, place.suffix) if path.is_file() else (place.name, "")
    while os.path.lexists(place.with_name(f"{stem}_{number}{suffix}")):
        number += 1
    return str(place.with_name(f"{stem}_{number}{suffix}"))


def is_part(folder: Path) -> bool:
    """Whether `folder` of a run's or a copy's is a model or checkpoint by its name."""
    return RUN_PART.fullmatch(folder.name) is not None


def kind_of(what: str) -> str:
    return _TITLES[what].partition(" ")[2]


def _is_of_runs(name: str) -> bool:
    return name in RUN_FILES or RUN_PART.fullmatch(name) is not None


def _is_as_we_write_it(entry: Path) -> bool:
    """Whether an entry of a run's folder is what we write under that name; parts may be torn."""
    if entry.name in RUN_FILES:
        return entry.is_file()
    if not entry.is_dir():
        return False
    return _listed(entry) is not None or next(foreign_in(entry), None) is None


def _has_records(folder: Path) -> bool:
    """Whether an unmarked folder has what version 0.1.0 wrote into a run's, or into its copy."""
    status, holder = read_json(folder / "status.json"), read_json(folder / "run.lock")
    if isinstance(status, dict) and "state" in status and set(status) <= _STATUS_KEYS:
        return True
    if isinstance(holder, dict) and set(holder) == {"pid", "start"}:
        return True
    parts = (entry for entry in folder.iterdir() if is_part(entry))
    return _has_recipe(folder) and any(_listed(part) is not None for part in parts)


def _has_recipe(folder: Path) -> bool:
    try:
        if not (folder / "recipe.yaml").is_file():
            return False
        with open(folder / "recipe.yaml", encoding="utf-8") as file:
            return _RECORDED_RECIPE.fullmatch(file.readline()) is not None
    except (OSError, ValueError):
        return False


def _judge(folder: Path, what: str | None) -> Callable[[str], bool]:
    """Tells by its name whether a file of `folder` was written by us, as `what`."""
    mark = read_mark(folder)
    if mark is not None and (what in (None, mark["what"])):
        files = mark.get("files")
        return set(files).__contains__ if isinstance(files, list) else lambda name: False
    if mark is not None:
        return lambda name: False
    listed = set(_listed(folder) or ())
    if what == "export" or (what is None and not listed and _has_recipe(folder)):
        return (
            (lambda name: _EXPORT_FILES.fullmatch(name) is not None)
            if _has_recipe(folder)
            else lambda name: False
        )
    if what == "mixture":
        record = read_json(folder / "mix.json")
        ours = isinstance(record, dict) and {"weights", "documents", "sources"} <= set(record)
        return (lambda name: _MIXTURE_FILES.fullmatch(name) is not None) if ours else lambda name: False
    return lambda name: name in listed or _MODEL_FILES.fullmatch(name) is not None


def manifest_path(folder: Path) -> Path:
    """Where a finished folder's manifest lies (or would), by the name that its version gave it."""
    return next((folder / name for name in MANIFESTS if (folder / name).is_file()), folder / MANIFEST)


def _listed(folder: Path) -> list[str] | None:
    """The files that a finished folder's manifest names; None where there is no manifest of ours."""
    manifest = read_json(manifest_path(folder))
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return list(files) if isinstance(files, dict) else None


def read_json(path: Path) -> object:
    """What a JSON file says; None where it cannot be read, or is none (it may come from elsewhere)."""
    try:  # a pipe would keep its reader waiting for ever
        if not path.is_file() or path.stat().st_size > _LARGEST_RECORD:
            return None
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def parse_json(text: str) -> object:
    """As `json.loads`, but whole numbers beyond 64 bits, which no float holds, are floats."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


def _leaves(folder: Path) -> Iterator[str]:
    """Relative names of all files, links and empty folders below `folder`."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        inner = here.relative_to(folder)
        for name in sorted((*files, *links)):
            yield (inner / name).as_posix()
        if not folders and not files and here != Path(folder):
            yield inner.as_posix()


def real_folder(folder: Path, flag: str) -> Path:
    """What `folder` is, links followed; it may not be there yet."""
    path = Path(os.path.realpath(folder))
    if path.is_symlink():
        raise UsageError(f"{folder} is a link that leads to itself: remove it, or give another {flag}.")
    if Path(folder).is_symlink() and not path.exists():
        raise UsageError(
            f"{folder} is a link to {path}, which is not there: make that, or give another {flag}."
        )
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"{folder} is a file, and {flag} names a folder: give another, e.g. {free_name(folder)}."
        )
    return path


def top_of(name: str) -> str:
    """The entry of the folder that a relative name lies in."""
    first, slash, _ = name.partition("/")
    return first + slash
