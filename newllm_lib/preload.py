"""Quicker imports: files are read side by side beforehand, and no file twice; no garbage is collected."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue

THREADS = 8
# What training imports, and folders in it of which it imports little.
PACKAGES = (
    "torch",
    "transformers",
    "pandas",
    "peft",
    "triton",
    "accelerate",
    "datasets",
    "numpy",
    "huggingface_hub",
)
LEFT_OUT = {
    "torch": ("_inductor", "testing", "lib", "include", "onnx"),
    "transformers": ("models",),
    "pandas": ("tests",),
}
LARGEST = 1 << 24  # bytes of a file that is read: of larger libraries little is used


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Within it Python looks for no cycles: imports make millions of objects that stay, and looking through
    them again and again is a seventh of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def distributions_by_name() -> Iterator[None]:
    """transformers before 5.20 asks which installed distribution each of a few packages is from, and so reads
    the metadata of all of them. Within this only that of the package's own name is read, where there is one.
    """
    read = metadata.packages_distributions
    metadata.packages_distributions = lambda: _Distributions(read)
    try:
        yield
    finally:
        metadata.packages_distributions = read


class _Distributions(Mapping[str, list[str]]):
    def __init__(self, read: Callable[[], Mapping[str, list[str]]]):
        self.all = functools.cache(read)

    def __getitem__(self, package: str) -> list[str]:
        try:
            return [metadata.metadata(package)["Name"]]
        except metadata.PackageNotFoundError:
            return self.all()[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.all())


def as_one_process() -> None:
    """transformers and accelerate import what cuts tensors over processes, and SymPy with it, where torch can
    work with several. After this they take torch for one that cannot, but in one of several processes.
    """
    import torch.distributed
    from transformers.utils import import_utils

    is_available = getattr(import_utils, "is_torch_distributed_available", None)
    if "WORLD_SIZE" in os.environ or "torch.distributed.tensor" in sys.modules or is_available is None:
        return
    asked, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    try:
        is_available()  # both remember the answer
        import accelerate.utils.imports  # noqa: F401
    finally:
        torch.distributed.is_available = asked


def read_ahead() -> threading.Thread:
    """Begin to read, in threads, what a machine's disk has perhaps never been asked for; returns at once."""
    thread = threading.Thread(target=_read_all, daemon=True, name="read ahead")
    thread.start()
    return thread


def read_models_once() -> None:
    """transformers reads each of its 1,600 model files for their names when it is imported, and all of them
    again with the first model: the second time is answered from the first. A transformers that does otherwise
    reads them.
    """
    import transformers
    from transformers.utils import import_utils

    folder = Path(transformers.__file__).parent / "models"
    read = getattr(import_utils, "define_import_structure", None)
    if read is None:
        return

    def define_import_structure(module_path: str, prefix: str | None = None) -> dict:
        if prefix is not None or Path(module_path) != folder / "__init__.py":
            return read(module_path, prefix)
        found = read(folder, prefix="models")  # kept by transformers, which adds its other modules to it
        below = {
            needs: {name.removeprefix("models."): v for name, v in names.items() if name[:7] == "models."}
            for needs, names in found.items()
        }
        return {needs: names for needs, names in below.items() if names}

    import_utils.define_import_structure = define_import_structure


def _read_all() -> None:
    files: SimpleQueue[str | None] = SimpleQueue()
    readers = [threading.Thread(target=_read, args=(files,), daemon=True) for _ in range(THREADS)]
    for reader in readers:
        reader.start()
    for package in PACKAGES:
        for file in _compiled(package):
            files.put(file)
    for _ in readers:
        files.put(None)
    for reader in readers:
        reader.join()


def _compiled(package: str) -> Iterator[str]:
    """The package's byte code and libraries, without importing it; nothing where it is not installed."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for folder, inner, names in os.walk(place):
            if Path(folder) == Path(place):
                inner[:] = [name for name in inner if name not in LEFT_OUT.get(package, ())]
            yield from (os.path.join(folder, name) for name in names if name.endswith((".pyc", ".so")))


def _read(files: SimpleQueue[str | None]) -> None:
    for name in iter(files.get, None):
        with contextlib.suppress(OSError), open(name, "rb") as file:
            if os.fstat(file.fileno()).st_size <= LARGEST:
                file.read()
