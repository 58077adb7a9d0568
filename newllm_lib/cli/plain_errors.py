"""What can go wrong on a user's machine (disk, network, memory, damaged files), and what to do about it.

What is in none of these tables is a defect of ours.
"""

from __future__ import annotations

import errno
import os

_DISK = "Free space, or choose another disk"
_BY_NUMBER = {
    errno.ENOENT: "Look at the name, and at the folder you are in",
    errno.EACCES: "Mend its permissions or owner, or choose another place",
    errno.EPERM: "Mend its permissions or owner, or choose another place",
    errno.EROFS: "Choose another place, or mount it so that it can be written",
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
    errno.EFBIG: _DISK,
    errno.ENOMEM: "Close other programs, or use a machine with more memory",
    errno.EMFILE: "Close other programs, or raise the limit with `ulimit -n`",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EPIPE: "Whatever read it has ended",
}
_PLACE = "Look at what is there, and move it away or choose another place"
_NETWORK = "The network or the hub did not answer ({}): look at the connection, and try again."
# names of exceptions, those of Python and some others with the package that they come from
_BY_KIND = {
    "RequestException": _NETWORK,  # of requests
    "HTTPError": _NETWORK,  # of urllib3, and of httpx under each of its names
    "HTTPException": _NETWORK,
    "URLError": _NETWORK,
    "gaierror": _NETWORK,
    "SSLError": _NETWORK,
    "builtins.ConnectionError": _NETWORK,
    "builtins.TimeoutError": _NETWORK,
    "builtins.MemoryError": "The memory is too small ({}): lower --batch_size or the sizes of the model.",
    "torch.OutOfMemoryError": "The GPU's memory is too small ({}): lower --micro_batch_size.",
    "builtins.ImportError": "A package is missing or damaged ({}): `bash colab_bootstrap.sh --setup-only`.",
    "builtins.UnicodeError": "A file, a name or the input is not UTF-8 ({}): save it as UTF-8, or rename it.",
    "json.JSONDecodeError": "A JSON file is damaged ({}): copy it again from where it was made.",
    "zipfile.BadZipFile": "An archive is damaged ({}): download it again.",
    "zlib.error": "An archive is damaged ({}): download it again.",
    "safetensors_rust.SafetensorError": "A file of weights is damaged ({}): copy it again.",
}


def in_plain_words(error: BaseException) -> str | None:
    """One line with cause and remedy for what went wrong outside of this program; None for a defect."""
    kinds = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    said = " ".join(str(error).split())[:200] or type(error).__name__
    names = [name for kind in kinds for name in (kind, kind.partition(".")[2])]
    text = next((_BY_KIND[name] for name in names if name in _BY_KIND), None)
    if text is not None and not (isinstance(error, BrokenPipeError)):
        return text.format(said)
    if isinstance(error, ValueError) and said == "embedded null byte":
        return "A name holds a null character, which no file's can: give another."
    if isinstance(error, RuntimeError) and said.startswith("Symlink loop from"):  # Python 3.12 and older
        return f"{said}: a link that leads to itself. {_PLACE}."
    if isinstance(error, RecursionError) and "decoding a JSON" in said:
        return _BY_KIND["json.JSONDecodeError"].format("it is nested too deeply")
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in said:
        return _BY_KIND["builtins.MemoryError"].format("torch could not allocate any more")
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_folder():
        return "The folder you are in was deleted: go to another one (`cd`), and try again."
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "A file"
        return f"{place}: {error.strerror or said}. {_BY_NUMBER.get(error.errno or 0, _PLACE)}."
    return None


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False
