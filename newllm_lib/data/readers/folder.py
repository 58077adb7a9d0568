"""Files of the user's: a file, or a folder with train.* and perhaps validation.* and test.*."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from newllm_lib.data.cache import key_hash
from newllm_lib.data.readers.base import (
    KINDS,
    PLAIN,
    ROWS,
    SPLIT_NAMES,
    TEXT,
    DataFile,
    FileReader,
    Reading,
    Segment,
    Source,
    in_segments,
    kind_of,
    packing_of,
)
from newllm_lib.data.readers.encodings import checked_name, in_words
from newllm_lib.data.readers.jsonfiles import read_json_lines, read_json_values
from newllm_lib.data.readers.parquetfiles import (
    columns_beside,
    groups_in,
    open_parquet,
    read_group,
    read_parquet,
    uncompressed_size,
)
from newllm_lib.data.readers.tables import read_csv
from newllm_lib.data.readers.textfiles import (
    Parting,
    check_encoding,
    content_hash,
    open_data,
    parting_of,
    read_lines,
    read_text,
    split_at_markers,
)
from newllm_lib.data.records import FileReport, Record, RowStats
from newllm_lib.data.schemas import COLUMNS, ends_utterance, parse_rows
from newllm_lib.errors import UsageError

_ALIASES = {"training": "train", "testing": "test"}  # where no file has the usual name
# [prefix.]split[2][-00000-of-00002[-hash]].kind[.gz], e.g. train.txt, wikitext-2.valid.txt, train_1.jsonl
_FILE_NAME = re.compile(
    rf"(?:(?P<prefix>.*)[._-])?(?P<split>{'|'.join([*SPLIT_NAMES, *_ALIASES])})"
    r"(?:[._-]?(?:part[._-]?)?(?P<number>\d+))?(?:-(?P<shard>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{8,})?)?"
    r"(?P<kind>\.[a-z]+(?:\.(?:gz|bz2|xz|zst))?)",
    re.IGNORECASE,
)
_COPY = re.compile(
    r"copy of | ?[-_ ] ?copy( ?\(?\d+\)?)?(?=\.)| ?\(\d+\)(?=\.)|コピー|のコピー", re.IGNORECASE
)
_LITTER = re.compile(
    r"\.|~\$|thumbs\.db$|desktop\.ini$|__macosx$|.*\.(tmp|part|crdownload|swp|lock)$|.*~$", re.I
)
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|citation|changelog)\b.*|mix\.json$|dataset_infos?\.json$", re.I
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
            unused.setdefault(path.name, _why_not(path))
    for place in below:
        if not any(place in path.parents for path in read):
            unused[f"{place.name}/"] = "a folder below: name it with --data_dir, or bring its files up"
    if not found:
        beside = "; ".join(f"{name}: {why}" for name, why in unused.items())
        raise UsageError(
            f"No data files in {folder}: it should hold train.txt (or .jsonl .json .csv .parquet), "
            "and may hold validation.* and test.* of the same kind."
            + (f" There is {beside}." if beside else "")
        )
    return Found(found, unused)


def _inside(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if not _LITTER.match(p.name) and not _ABOUT.match(p.name)]


def _is_data(path: Path) -> bool:
    return (
        path.is_file() and kind_of(path) in KINDS and not (packing_of(path) and kind_of(path) == ".parquet")
    )


def _why_not(path: Path) -> str:
    if kind_of(path) in KINDS:
        return "its name says no split: train, validation and test are read"
    ending = path.suffix.lower()
    known = (advice for advice, endings in _INSTEAD.items() if ending in endings)
    return next(known, "no kind of file that is read")


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
            first = next(paths[0].name for other, paths in found.items() if other != key)
            unused.update({path.name: _beside(key, first) for path in found.pop(key)})
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


def _beside(key: tuple, first: str) -> str:
    if key[0]:
        return f"a copy beside {first}"
    if key[7]:
        ending = key[5]
        return f"beside {first}; to read both call them train_1{ending} and train_2{ending}"
    return f"{first} is read"


def _in_order(paths: list[Path]) -> list[Path]:
    """Parts by their numbers."""
    return sorted(paths, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def _without_names(
    folder: Path, files: list[Path], below: list[Path]
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """No name says a split: the files are the training split if they are of one kind; else folders below are
    looked into, by the splits that their names say, or data/ as the hub has it.

    Raises:
        UsageError: files of several kinds.
    """
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


def check_whole(splits: dict[str, list[Path]]) -> dict[str, str]:
    """Numbered parts that are not there, where only their neighbours say so.

    Raises:
        UsageError: one of so many (`-00001-of-00003`) is not there.
    """
    missing: dict[str, str] = {}
    for paths in splits.values():
        names = [match for path in paths if (match := _FILE_NAME.fullmatch(path.name))]
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


class FolderSource(Source):
    """A folder's files.

    Args:
        paths: the files of each split; default: as `find_files` finds them.
        reading: how they are read.

    Raises:
        UsageError: as `find_files`; a part of several is missing; no such encoding.
    """

    own = True

    def __init__(self, folder: Path, paths: dict[str, list[Path]] | None = None, reading: Reading = PLAIN):
        self.title = folder.resolve().name or str(folder)
        found = Found(paths, {}) if paths else look_into(folder)
        self._paths, self._unused = found.splits, found.unused | check_whole(found.splits)
        self.splits = self._paths.keys()
        self._reading = reading._replace(encoding=checked_name(reading.encoding) if reading.encoding else "")
        self._hashes: dict[str, str] = {}
        self._partings: dict[Path, tuple[Reading, Parting | None]] = {}

    @property
    def unused(self) -> dict[str, str]:
        return self._unused

    def name_now(self, name: str, part: FileReport) -> str:
        paths = self._paths.get(part.split, [])
        return paths[part.number].name if part.number < len(paths) else name

    def fingerprint(self, split: str) -> str:
        if split not in self._hashes:
            paths = self._paths[split]
            how = [self._how(path) for path in paths]
            other = [
                [reading.encoding, parting.words if parting else ""]
                for reading, parting in how
                if reading.encoding or (parting and not parting.as_ever)
            ]
            kinds = [kind_of(path) + packing_of(path) for path in paths]
            parts = {"files": content_hash(paths), "kinds": kinds} | ({"read": other} if other else {})
            self._hashes[split] = key_hash(parts)
        return self._hashes[split]

    def size(self, split: str) -> int | None:
        return sum(text_size(path) for path in self._paths[split])

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        for path in self._paths[split]:
            yield from read_table(path, columns, self._how(path)[0].encoding)

    def records(self, split: str, tally: RowStats) -> Iterator[Record]:
        for number, path in enumerate(self._paths[split]):
            reading, parting = self._how(path)
            tally.begin(
                path.name,
                split,
                number=number,
                bytes=path.stat().st_size,
                encoding=in_words(reading.encoding) if reading.encoding else "",
            )
            yield from read_file(path, tally, reading, parting)
        tally.finish()

    def files(self, split: str) -> list[DataFile] | None:
        if any(self._how(path)[0].encoding for path in self._paths[split]):
            return None
        return in_segments([DataFile(str(path), path.stat().st_size) for path in self._paths[split]])

    def reader(self) -> FileReader:
        return LocalReader()

    def _how(self, path: Path) -> tuple[Reading, Parting | None]:
        """How a file is read, and plain text parted.

        Raises:
            NewLLMError: it is in another encoding than UTF-8, and none was named.
        """
        if path not in self._partings:
            reading, parting = self._reading, None
            if kind_of(path) != ".parquet":
                reading = reading._replace(encoding=check_encoding(path, reading.encoding))
            if kind_of(path) in TEXT and not _holds_utterances(path, reading):
                parting = parting_of(path, reading)
            self._partings[path] = reading, parting
        return self._partings[path]


class LocalReader:
    """Reads pieces of this machine's files."""

    def read(self, place: str, begin: int, end: int) -> bytes:
        with open_data(Path(place)) as file:
            file.seek(begin)
            return file.read(end - begin)

    def row_groups(self, segment: Segment, columns: frozenset[str] | None) -> Iterator[list[dict]]:
        with open_parquet(Path(segment.place)) as file:
            yield from (read_group(file, group, columns) for group in groups_in(file, segment))


def read_file(
    path: Path, tally: RowStats, reading: Reading = PLAIN, parting: Parting | None = None
) -> Iterator[Record]:
    """The records of one file; bad rows go to `tally`.

    Args:
        parting: of plain text; default: as `parting_of` finds it.

    Raises:
        NewLLMError: the file cannot be read at all.
    """
    if kind_of(path) not in TEXT:
        rows = read_table(path, COLUMNS, reading.encoding, tally.file.notes)
        if kind_of(path) == ".parquet":
            tally.file.unread.update(columns_beside(path, COLUMNS))
        record: Record
        for record in parse_rows(rows, tally):
            texts = [record.text] if record.text is None else split_at_markers(record.text)
            if texts != [record.text]:
                tally.file.notes["markers such as <|endoftext|> part the text of a row"] += 1
            yield from (record._replace(text=text) for text in texts)
    elif parting is None and _holds_utterances(path, reading):
        yield from parse_rows(_read_utterances(path, reading.encoding), tally)
    else:
        parting = parting or parting_of(path, reading)
        tally.file.documents = parting.words
        for document in read_text(path, reading, parting):
            if not document.continues:
                tally.accept()
            yield document


def read_table(
    path: Path,
    columns: frozenset[str] | None = None,
    encoding: str = "",
    notes: Counter[str] | None = None,
) -> Iterator[tuple[str, object]]:
    """(where, row) of a file of rows; a row that cannot be read comes as a `ValueError`.

    Args:
        columns: those that are needed, where the file keeps its columns apart; default: all.
        encoding: of the file; default: UTF-8.
        notes: where it is counted how many rows lay one level down.

    Raises:
        NewLLMError: the file cannot be read, or is plain text.
    """
    kind = kind_of(path)
    if kind not in ROWS:
        raise UsageError(f"{path} holds no rows: use {', '.join(ROWS)}.")
    rows = read_parquet(path, columns) if kind == ".parquet" else _ROWS[kind](path, encoding)
    for where, row in rows:
        inner = _inner(row)
        if inner and notes is not None:
            notes[f"rows lie one level down, in {inner}"] += 1
        yield where, row[inner] if inner and isinstance(row, dict) else row


_ROWS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_values,
    ".csv": read_csv,
    ".tsv": read_csv,
}


def _inner(row: object) -> str:
    """Where a row's columns lie one level down (`{"row_idx": 0, "row": {…}}`); empty: here."""
    if not isinstance(row, dict) or not (COLUMNS.isdisjoint(row) or isinstance(row.get("data"), dict)):
        return ""
    inner = [k for k, part in row.items() if isinstance(part, dict) and not COLUMNS.isdisjoint(part)]
    return inner[0] if len(inner) == 1 else ""


def text_size(path: Path) -> int:
    """About how many bytes of text a file holds (parquet is compressed)."""
    if kind_of(path) == ".parquet":
        return uncompressed_size(path, COLUMNS)
    return path.stat().st_size * (3 if packing_of(path) else 1)


def _holds_utterances(path: Path, reading: Reading) -> bool:
    """Whether a text file is DailyDialog's: a dialogue a line."""
    first = next((line for line in read_lines(path, reading.encoding) if line.strip()), "")
    return ends_utterance(first)


def _read_utterances(path: Path, encoding: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(path, encoding), 1):
        if line.strip():
            known = ends_utterance(line)
            yield (
                f"{path}, line {number}",
                {"text": line} if known else ValueError("a line that does not end in __eou__"),
            )
