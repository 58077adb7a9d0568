"""Which files of a user's folder are read, by their names, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from newllm_lib.data.readers.base import KINDS, SPLIT_NAMES, kind_of, packing_of
from newllm_lib.errors import UsageError

_ALIASES = {"training": "train", "testing": "test"}  # where no file has the usual name
# [prefix.]split[2][-00000-of-00002[-hash]].kind[.gz], e.g. train.txt, wikitext-2.valid.txt, train_1.jsonl
_FILE_NAME = re.compile(
    rf"(?:(?P<prefix>.*)[._-])?(?P<split>{'|'.join([*SPLIT_NAMES, *_ALIASES])})"
    r"(?:[._-]?(?:part[._-]?)?(?P<number>\d+))?(?:-(?P<shard>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{8,})?)?"
    r"(?P<kind>\.[a-z]+(?:\.(?:gz|bz2|xz|zst))?)",
    re.IGNORECASE,
)
# a part of files whose names say no split: data-00000-of-00003.parquet, shard_002.txt
_PART = re.compile(
    r".*?(?:(?P<number>\d{2,})|(?P<shard>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{8,})?)(?P<kind>\.[a-z]+(?:\.\w+)?)",
    re.IGNORECASE,
)
_COPY = re.compile(
    r"copy of | ?[-_ ] ?copy( ?\(?\d+\)?)?(?=\.)| ?\(\d+\)(?=\.)|コピー|のコピー", re.IGNORECASE
)
_LITTER = re.compile(
    r"\.|~\$|thumbs\.db$|desktop\.ini$|__macosx$|.*\.(tmp|part|crdownload|swp|lock)$|.*~$", re.I
)
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|citation|changelog)\b.*|mix\.json$|dataset_(infos?|dict)\.json$|state\.json$",
    re.I,
)
_INSTEAD = {
    "unpack it": (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".z"),
    "save it as .csv": (".xlsx", ".xls", ".ods", ".sqlite", ".db"),
    "save its text as .txt": (".pdf", ".docx", ".doc", ".odt", ".rtf", ".epub", ".html", ".htm", ".xml"),
    "save it as .parquet": (".arrow", ".feather", ".orc", ".avro"),
    "call it .txt to read it": (".md", ".markdown", ".rst", ".log", ".tex", ".srt", ""),
    "call it .jsonl to read it": (".jsonlines", ".jl", ".ldjson"),
    "pickles are not read: save it as .parquet": (".pkl", ".pickle", ".pt", ".npy", ".npz"),
}


class Found(NamedTuple):
    """What a folder holds."""

    splits: dict[str, list[Path]]
    unused: dict[str, str]  # files with content that are not read: why, and what to do


def find_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder; several only where they are parts of one.

    Raises:
        UsageError: no such folder, no data files in it, or two files that could both be one split.
    """
    return look_into(folder).splits


def look_into(folder: Path) -> Found:
    """As `find_files`, with what is there beside them."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"--data_dir {folder} {what}: name a folder that holds train.txt (or .jsonl .json .csv .parquet)."
        )
    entries = [p for p in sorted(folder.iterdir()) if not _LITTER.match(p.name)]
    files = [p for p in entries if p.is_file() and p.stat().st_size and not _ABOUT.match(p.name)]
    empty = [p for p in entries if p.is_file() and not p.stat().st_size]
    below = [p for p in entries if p.is_dir() and any(map(_is_data, _inside(p)))]
    found, unused = _by_name([p for p in (*files, *empty) if _is_data(p)])
    if not found:
        found, unused = _without_names(folder, [p for p in files if _is_data(p)], below)
    read = {path for paths in found.values() for path in paths}
    for path in files:
        if path not in read:
            unused.setdefault(path.name, why_not(path))
    for place in below:
        if not any(place in path.parents for path in read):
            unused[f"{place.name}/"] = "a folder below: name it with --data_dir, or bring its files up"
    if not found:
        unused |= {f"{p.name}/": _nothing_in(p) for p in entries if p.is_dir() and p not in below}
        beside = "; ".join(f"{name}: {why}" for name, why in unused.items())
        raise UsageError(
            f"No data files in {folder}: it should hold train.txt (or .jsonl .json .csv .parquet), "
            "and may hold validation.* and test.* of the same kind."
            + (f" There is {beside}." if beside else "")
        )
    return Found(found, unused)


def _inside(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if not _LITTER.match(p.name) and not _ABOUT.match(p.name)]


def _nothing_in(folder: Path) -> str:
    """Why nothing is read of a folder below."""
    first = next((p for p in _inside(folder) if p.is_file()), None)
    return f"{first.name}: {why_not(first)}" if first else "it has no files: bring those of its folders up"


def _is_data(path: Path) -> bool:
    return (
        path.is_file() and kind_of(path) in KINDS and not (packing_of(path) and kind_of(path) == ".parquet")
    )


def why_not(path: Path) -> str:
    if kind_of(path) == ".parquet" and packing_of(path):
        return "unpack it"
    if kind_of(path) in KINDS:
        return "its name says no split: train, validation and test are read"
    ending = kind_of(path) if kind_of(path) == ".tar" else path.suffix.lower()
    known = (advice for advice, endings in _INSTEAD.items() if ending in endings)
    other = "no kind of file that is read"
    if kind_of(Path(path.stem)) in KINDS:  # .aa of `split`, .bak
        other = f"call it {path.stem} to read it; pieces of a file: put them together"
    return next(known, other)


def _by_name(files: list[Path]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Files whose names say a split, of each split one series of parts; and those that stand back for it.

    Raises:
        UsageError: two series could be one split.
    """
    unused: dict[str, str] = {}
    series: dict[str, dict[tuple, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        copy = bool(_COPY.search(path.name))
        match = _FILE_NAME.fullmatch(_COPY.sub("", path.name))
        if match:
            word = match["split"].lower()
            key = (
                copy,
                word in _ALIASES,
                bool(packing_of(path)),
                match["prefix"],
                word,
                match["kind"].lower(),
            )
            parts = (match["total"], match["number"] is not None, path.name if copy else "")
            series[SPLIT_NAMES.get(word) or _ALIASES[word]][key + parts].append(path)
    for split, found in series.items():
        for key in _standing_back(found):
            other, first = next((other, paths[0]) for other, paths in found.items() if other != key)
            unused.update({path.name: _beside(key, other, first.name) for path in found.pop(key)})
        if len(found) > 1:
            names = ", ".join(paths[0].name for paths in found.values())
            raise UsageError(
                f"Several files in {files[0].parent} could be the {split} split: {names}. Leave one of them "
                "there."
            )
    return {split: _in_order(*found.values()) for split, found in series.items()}, unused


def _standing_back(found: dict[tuple, list[Path]]) -> list[tuple]:
    """Series that are not read beside another: copies, packed twins, other kinds, numbers beside none."""
    for rank in (
        lambda key: key[0],  # a copy
        lambda key: key[1],  # training.txt beside train.txt
        lambda key: key[2],  # packed
        lambda key: key[5] in (".csv", ".tsv", ".ndjson", ".text"),
        lambda key: key[7],  # train2.jsonl beside train.jsonl
    ):
        back = [key for key in found if rank(key)]
        if 0 < len(back) < len(found):
            return back + _standing_back({key: paths for key, paths in found.items() if key not in back})
    return []


def _beside(key: tuple, other: tuple, first: str) -> str:
    if key[0]:
        return f"a copy beside {first}"
    if key[7] and key[5] == other[5]:
        ending = key[5]
        return f"beside {first}; to read both call them train_1{ending} and train_2{ending}"
    return f"{first} is read" + ("" if key[5] == other[5] else "; files of one split are of one kind")


def _in_order(paths: list[Path]) -> list[Path]:
    """Parts by their numbers."""
    return sorted(paths, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def _without_names(
    folder: Path, files: list[Path], below: list[Path]
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """No name is a split's: the files are what words in their names say (train_en.jsonl beside
    test_en.jsonl), or the training split if they are of one kind; else folders below are looked into, by the
    splits that their names say, or data/ as the hub has it.

    Raises:
        UsageError: files of several kinds.
    """
    if said := _by_words(files):
        return said, {}
    kinds = Counter(kind_of(path) for path in files)
    if len(kinds) > 1:
        raise UsageError(
            f"{folder} holds files of several kinds, and no name says which is the train split: "
            f"{', '.join(path.name for path in files[:6])}. Call it train{kinds.most_common(1)[0][0]}."
        )
    if files:
        return {"train": _in_order(files)}, {}
    named = {SPLIT_NAMES[p.name.lower()]: p for p in below if p.name.lower() in SPLIT_NAMES}
    if "train" in named:
        found = {
            split: _in_order([p for p in _inside(place) if _is_data(p)]) for split, place in named.items()
        }
        return found, {}
    for place in below:
        if place.name == "data" or len(below) == 1:
            return look_into(place)
    return {}, {}


def _by_words(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that one word of their name says; none where it is not train beside another."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        words = re.findall(r"[a-z]+", path.name.partition(".")[0].lower())
        said = {SPLIT_NAMES.get(word.removesuffix("set").removesuffix("data")) for word in words} - {None}
        if len(said) == 1:
            found[str(said.pop())].append(path)
    if "train" not in found or len(found) == 1:
        return {}
    return {split: _in_order(paths) for split, paths in found.items()}


def check_whole(splits: dict[str, list[Path]]) -> dict[str, str]:
    """Numbered parts that are not there, where only their neighbours say so.

    Raises:
        UsageError: one of so many (`-00001-of-00003`) is not there.
    """
    missing: dict[str, str] = {}
    for paths in splits.values():
        names = [
            match
            for path in paths
            if (match := _FILE_NAME.fullmatch(path.name) or _PART.fullmatch(path.name))
        ]
        shards = [int(match["shard"]) for match in names if match["shard"]]
        if shards:
            _check_shards(paths, shards, int(names[0]["total"]))
        numbers = sorted(int(match["number"]) for match in names if match["number"] and not match["shard"])
        for number in set(range(numbers[0], numbers[-1])) - set(numbers) if len(numbers) > 1 else ():
            if numbers[-1] - numbers[0] < 10 * len(numbers):
                missing[f"part {number} of {paths[0].name} …"] = "it is not there, its neighbours are"
    return missing


def _check_shards(paths: list[Path], shards: list[int], total: int) -> None:
    lost = sorted(set(range(total)) - set(shards))
    if lost and 0 not in shards and total in shards:  # counted from 1
        lost = sorted(set(range(1, total + 1)) - set(shards))
    if lost or len(shards) > len(set(shards)):
        name = re.sub(r"-\d+-of-", lambda m: f"-{(lost or shards)[0]:0{len(m[0]) - 5}d}-of-", paths[0].name)
        name = re.sub(r"(-of-\d+)-[0-9a-f]{8,}", r"\1", name)
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        what = f"{name} is missing{more}: {len(shards)} of {total} parts are" if lost else f"{name} is twice"
        raise UsageError(
            f"{what} in {paths[0].parent}. Bring it there (a download was cut short, perhaps), or give the "
            "parts other names, such as train_1 and train_2, to train on these alone."
        )
