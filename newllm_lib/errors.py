"""The errors a user may see: one line each, saying what happened and what to do about it.

The `newllm` command prints the line and exits with `exit_code`; a traceback is shown only with `--debug`.
What else can go wrong on a user's machine (disk, network, memory, a damaged file) is in the tables below:
what is in none of them is a defect of ours.
"""

from __future__ import annotations

import errno
import os
import re

_SECRETS = re.compile(
    r"(?<=://)[^\s/@'\"]+@"  # a URL's user and token
    r"|(?<=[?&]token=)[^\s&'\"]+|\bhf_\w{16,}|\bgh[a-z]_\w{16,}"
)
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
    "builtins.UnicodeError": "A file or a name is not UTF-8 ({}): save it as UTF-8.",
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
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "A file"
        return f"{place}: {error.strerror or said}. {_BY_NUMBER.get(error.errno or 0, _PLACE)}."
    return None


def without_secrets(text: str) -> str:
    """`text` without the user and token of a URL, and without tokens of the hub and of GitHub."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if len(token := os.environ.get(name, "")) > 7:
            text = text.replace(token, "***")
    return _SECRETS.sub("", text)


class NewLLMError(Exception):
    """Something the user must know about: the message is one line with the cause and the remedy."""

    exit_code = 1

    def __init__(self, *words: object):
        super().__init__(*(without_secrets(word) if isinstance(word, str) else word for word in words))


class UsageError(NewLLMError):
    """The command, a flag, a recipe key or a path was wrong: nothing was started, nothing was changed."""

    exit_code = 2


class Interrupted(NewLLMError):
    """Stopped by Ctrl-C or SIGTERM, after saving."""

    exit_code = 130
