"""`newllm bench NAME`: a benchmark of `benchmarks/`, which is in a clone, not in the installed package.

A benchmark is a module there with `add_arguments(parser)` and `main(arguments)`; `benchmarks/__init__.py`
lists them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from newllm_lib.console import say
from newllm_lib.errors import UsageError
from newllm_lib.runs import check_file
from newllm_lib.runs.ownership import free_name, read_mark

CLONE = Path(__file__).resolve().parents[2]  # where it is one


def open_benchmark(words: list[str]) -> tuple[str, ModuleType] | None:
    """The benchmark that the words after `bench` name; with none, lists all and returns None.

    Raises:
        UsageError: there is no such benchmark, or no folder of them.
    """
    package = _package()
    if not words or words[0] in ("-h", "--help"):
        say(
            "newllm bench NAME [FLAGS]: measure, append the figures to benchmarks/results.csv. NAME is one of"
        )
        for name, line in package.BENCHMARKS.items():
            say(f"  {name:<17}{line}")
        say("`newllm bench NAME --help` shows its flags.")
        return None
    name = words[0].replace("-", "_")
    name = package.ALIASES.get(name, name)
    if name not in package.BENCHMARKS:
        raise UsageError(f"There is no benchmark {words[0]!r}: use {', '.join(package.BENCHMARKS)}.")
    return name, importlib.import_module(f"benchmarks.{name}")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is measured, to write over files that are not a benchmark's.

    Raises:
        UsageError: `--out` names a file that is no table of figures, or `--picture` one that was not drawn
            here, or `--folder` a folder of somebody else's.
    """
    if getattr(arguments, "out", None):
        check_file(Path(arguments.out), "--out", lambda text: text.startswith("date,benchmark,"))
    picture = getattr(arguments, "picture", None)
    if picture and not (Path(picture).is_file() and b"Matplotlib" in Path(picture).read_bytes()[:1000]):
        check_file(Path(picture), "--picture", lambda text: False)
    if getattr(arguments, "folder", None):
        _check_folder(Path(arguments.folder))


def _check_folder(folder: Path) -> None:
    """Refuse a folder to work in that holds anything and that no benchmark has marked as its own."""
    mark = read_mark(folder)
    if mark is not None and mark["what"] == "benchmark":
        return
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is not a benchmark's folder: nothing was changed. Give another --folder, e.g. "
            f"{free_name(folder)}."
        )


def underscored(words: list[str]) -> list[str]:
    """Flags as the benchmarks spell them: `--side-by-side` is `--side_by_side`."""
    flags = [word.partition("=") for word in words]
    return ["--" + f[2:].replace("-", "_") + e + v if f.startswith("--") else f + e + v for f, e, v in flags]


def _package() -> ModuleType:
    """The folder as the package `benchmarks`: this clone's, whatever lies in the current folder."""
    start = CLONE / "benchmarks" / "__init__.py"
    if not start.is_file():
        raise UsageError(
            "Benchmarks are not installed with the package: `git clone` New-LLM, and there "
            "`bash colab_bootstrap.sh --setup-only demo`, then `newllm bench`."
        )
    known = sys.modules.get("benchmarks")
    if known is None or getattr(known, "__file__", None) != str(start):
        spec = importlib.util.spec_from_file_location(
            "benchmarks", start, submodule_search_locations=[str(start.parent)]
        )
        assert spec is not None and spec.loader is not None  # a file's path always gives both
        sys.modules["benchmarks"] = known = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(known)
    return known
