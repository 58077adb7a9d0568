"""Foreign files are checked before anything reads them: links, pickles, weights that are something else.

A checkpoint of ours holds safetensors, text, and the optimizer's state in torch's own format, which is read
without executing anything (`weights_only`). All else that could run code, or lead out of the folder, is
refused.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path, PurePosixPath

from newllm_lib.errors import NewLLMError

_PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".joblib",
    ".npy",
    ".npz",
    ".dill",
    ".h5",
    ".msgpack",
)
_CODE = (".py", ".pyc", ".so", ".sh")
# What an export brings for those who have no newllm_lib (`export.modeling`), and how it begins. Nothing here
# runs it, whoever wrote it: our models are loaded by their own classes.
EXPORTED_CODE = ("modeling_new_llm.py", "modeling_phase7.py")
EXPORTED_MARK = "# Written by `newllm export`"
# Training's state beside the weights; it is read as plain tensors and numbers.
_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "optimizer.bin")
_LARGEST_HEADER = 100_000_000  # bytes: safetensors' own limit
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}


def check_checkpoint_dir(folder: Path) -> None:
    """Refuse a model or checkpoint folder that could run code, leads elsewhere or has bad weights.

    Raises:
        NewLLMError: names the file and what to do.
    """
    for path in sorted(Path(folder).rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind) and not _of_a_hubs_cache(path):
            raise NewLLMError(
                f"{path} is a link to {os.readlink(path)}: refused. Put the file itself there, or delete it."
            )
        if not path.is_dir() and not path.is_file():
            raise NewLLMError(f"{path} is neither a file nor a folder: refused. Delete it.")
        if path.is_file():
            check_name(path)
        if path.suffix == ".safetensors":
            safetensors_header(path)


def _of_a_hubs_cache(link: Path) -> bool:
    """Whether it is a link as huggingface_hub makes them: from `snapshots/<commit>/` into `blobs/`."""
    repository = next((p.parent for p in link.parents if p.name == "snapshots"), None)
    return repository is not None and link.resolve().parent == (repository / "blobs").resolve()


def check_name(path: Path | PurePosixPath) -> None:
    """Refuse a file that could run code when it is read. Raises: NewLLMError."""
    suffix, state = path.suffix.lower(), path.name in _STATE or path.name.startswith("rng_state_")
    if suffix in _PICKLES and not state:
        raise NewLLMError(
            f"{path} is a pickle, which can run any program when it is read: refused. Use weights in "
            "safetensors (model.safetensors) and delete this file."
        )
    if suffix in _CODE and not _of_an_export(path):
        raise NewLLMError(f"{path} is a program, and none is run from a checkpoint: refused. Delete it.")


def _of_an_export(path: Path | PurePosixPath) -> bool:
    """Whether it is called as an export's modelling file is, and (if it is there already) begins as one."""
    return path.name in EXPORTED_CODE and (
        not isinstance(path, Path) or path.read_bytes().startswith(EXPORTED_MARK.encode())
    )


def safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to (dtype, shape) of a safetensors file, from its header alone.

    Raises:
        NewLLMError: the header is larger than the file or than any real one, or does not fit the file.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise NewLLMError(
                f"{path} claims a header of {length:,} bytes and has {size:,} in all: refused. Copy it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: (entry["dtype"], tuple(map(int, entry["shape"]))) for name, entry in header.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        fits = all(
            math.prod(found[name][1]) * SIZES[found[name][0]]
            == entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in header.items()
            if found[name][0] in SIZES
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        raise NewLLMError(f"{path} has no readable safetensors header: refused. Copy it again.") from None
    ends = [0, *(end for _, end in spans)]
    gaps = any(begin != end for (begin, _), end in zip(spans, ends, strict=False))
    if not fits or gaps or ends[-1] != size - 8 - length:
        raise NewLLMError(f"{path} does not hold the weights that its header says: refused. Copy it again.")
    return found
