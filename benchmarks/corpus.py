"""The quality benchmark's texts, as folders for `--data_dir`: the same documents and splits for all models.

ChitChat: the conversations of the PyPI package, shuffled once; 500 to report, 250 others to choose settings
by, the rest to train. Each conversation stands as lines "A: …" and "B: …". WikiText-2: articles of text files
in its format, cut 8 : 1 : 1. And for `time_to_quality` a text cut in two, or the Python sources that are
installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError

CHOOSE, FINAL, LESS_LONGEST = "choose", "final", "less_longest"


def open_corpus(name: str, folder: Path, text: Path | None = None) -> dict[str, Path]:
    """Three folders below `folder`, made where they are missing.

    CHOOSE: train, validation, test. FINAL: the same with the validation text in the training text too, for
    the trainings that are reported. LESS_LONGEST: the test text without its longest document.

    Args:
        text: for wikitext2, the folder that holds files named `*wikitext*` with its text.

    Raises:
        UsageError: a name that is none, or no text.
        NewLLMError: ChitChat's package is not installed.
    """
    if name not in _TEXTS:
        raise UsageError(f"There is no benchmark corpus {name!r}: use {' or '.join(_TEXTS)}.")
    places = {kind: folder / name / kind for kind in (CHOOSE, FINAL, LESS_LONGEST)}
    if not places[LESS_LONGEST].is_dir():  # the last that is made
        write(_TEXTS[name](text), places)
    return places


def write(parts: dict[str, list[str]], places: dict[str, Path]) -> None:
    """Write the documents of train, validation and test into the three folders."""
    longest = max(parts["test"], key=len)
    _write(parts, places[CHOOSE])
    _write({**parts, "train": parts["train"] + parts["validation"]}, places[FINAL])
    _write(
        {"test": [document for document in parts["test"] if document is not longest]}, places[LESS_LONGEST]
    )


def _write(parts: dict[str, list[str]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, documents in parts.items():
        lines = [json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def cut_text(file: Path, share: float, folder: Path) -> dict[str, str]:
    """A text of one document, cut in two: "train" and "validation", written to `folder` as a `--data_dir`.

    Args:
        share: of the characters, to train on.

    Raises:
        UsageError: the file is not there, or no UTF-8, or too short.
    """
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {file}: {error}") from error
    cut = int(share * len(text))
    parts = {"train": text[:cut], "validation": text[cut:]}
    if not all(part.strip() for part in parts.values()):
        raise UsageError(f"--text {file}: too short for {share:g} of it and a rest.")
    folder.mkdir(parents=True)
    # the command wants a test text, which nobody looks at: the end of the validation text
    for part, words in (parts | {"test": parts["validation"][-max(8000, len(text) // 100) :]}).items():
        with (folder / f"{part}.txt").open("w", encoding="utf-8", newline="") as opened:
            opened.write(words)
    return parts


@dataclass
class Sources:
    """Python sources on both sides of a split: packages by name, and bytes."""

    packages: dict[str, list[str]]
    bytes: dict[str, int]

    def in_words(self) -> str:
        held_out = " ".join(self.packages["validation"])
        return (
            f"Python sources of {len(self.packages['train'])} packages, {self.bytes['train']:,} bytes; "
            f"held out: {held_out}, {self.bytes['validation']:,} bytes"
        )


def python_sources(installed: Path, folder: Path) -> Sources:
    """The `.py` files of installed packages, one document each, written to `folder` as a `--data_dir`.

    Which side a package is on is decided by a hash of its name, so none is on both: one in ten is held out.
    Files that one package has copied from another ("vendored") are left out, and held-out files whose very
    text is trained on.

    Args:
        installed: a `site-packages` folder.

    Raises:
        NewLLMError: one side has nothing.
    """
    packages: dict[str, list[str]] = {"train": [], "validation": []}
    documents: dict[str, list[str]] = {"train": [], "validation": []}
    for package in sorted(entry for entry in installed.iterdir() if entry.is_dir()):
        texts = list(_python_files(package))
        if texts:
            part = "train" if hashlib.sha256(package.name.encode()).digest()[0] % 10 else "validation"
            packages[part].append(package.name)
            documents[part] += texts
    trained = set(documents["train"])
    documents["validation"] = [text for text in documents["validation"] if text not in trained]
    if not all(documents.values()):
        raise NewLLMError(f"{installed} has too few packages with Python sources to hold some out.")
    _write({**documents, "test": documents["validation"]}, folder)
    sizes = {part: sum(len(text.encode("utf-8")) for text in texts) for part, texts in documents.items()}
    return Sources(packages, sizes)


def _python_files(package: Path) -> Iterator[str]:
    for file in sorted(package.rglob("*.py")):
        if "vendor" not in str(file.relative_to(package.parent)).lower():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # a test's file in another encoding, a dead link
                continue
            if text.strip():
                yield text


def _chitchat(text: Path | None) -> dict[str, list[str]]:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None:
        raise NewLLMError("ChitChat's package is missing: pip install chitchat-dataset==0.9.0")
    conversations = json.loads((Path(spec.origin).parent / "dataset.json").read_text(encoding="utf-8"))
    names = sorted(conversations)
    random.Random(0).shuffle(names)
    documents = [_as_lines(conversations[name]["messages"]) for name in names]
    return {"train": documents[750:], "validation": documents[500:750], "test": documents[:500]}


def _as_lines(turns: list) -> str:
    return "\n".join(f"{'AB'[i % 2]}: " + " ".join(m["text"] for m in turn) for i, turn in enumerate(turns))


def _wikitext(text: Path | None) -> dict[str, list[str]]:
    files = sorted(text.glob("*wikitext*")) if text else []
    if not files:
        raise UsageError("wikitext2 needs --text FOLDER, a folder with WikiText-2's files (*wikitext*).")
    articles: list[str] = []
    for line in "".join(f.read_text(encoding="utf-8") for f in files).splitlines(keepends=True):
        title = line.strip()
        if title.startswith("= ") and title.endswith(" =") and not title.startswith("= ="):
            articles.append("")
        if articles:
            articles[-1] += line
    random.Random(0).shuffle(articles)
    tenth = len(articles) // 10
    return {
        "train": articles[2 * tenth :],
        "validation": articles[:tenth],
        "test": articles[tenth : 2 * tenth],
    }


_TEXTS = {"chitchat": _chitchat, "wikitext2": _wikitext}
