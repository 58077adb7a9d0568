"""The `newllm` command: parses, calls, prints. What it can do is done by the rest of the package.

Exit codes: 0 done; 1 failed, with one line that says what and how to mend it; 2 bad usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
import traceback

from newllm_lib import console
from newllm_lib.cli.parser import parse
from newllm_lib.cli.plain_errors import in_plain_words
from newllm_lib.errors import NewLLMError, without_secrets
from newllm_lib.recipe.files import from_users_folder

_RANK = os.environ.get("RANK", "0")  # which of the processes that torchrun started this is: the first speaks


def main(argv: list[str], began: float | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr (`--debug`: a traceback).

    Args:
        began: when its process did, by `time.monotonic` (default: now).
    """
    began = time.monotonic() if began is None else began
    debug = "--debug" in argv
    _prepare_streams()
    console.mute(_RANK != "0")
    try:
        arguments = parse(_from_the_users_folder(argv))
        if arguments is None:  # help or version was asked for, and shown
            return 0
        arguments.began = began
        return _run(arguments)
    except NewLLMError as error:
        return _failed(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _failed("Interrupted.", 130, debug)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        return 0
    except Exception as error:
        if (line := in_plain_words(error)) is not None:
            return _failed(line, 1, debug)
        line = " ".join(str(error).split())[:300]
        return _failed(f"{type(error).__name__}: {line} (--debug shows where; please report it)", 1, debug)


def _prepare_streams() -> None:
    """What a terminal cannot show is written as `\\u2713`; no file takes the place of a closed stream."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # `<&-`: whoever asks hears nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _from_the_users_folder(argv: list[str]) -> list[str]:
    """Paths as colab_bootstrap.sh's caller meant them: it changes to the clone before this command."""
    if "NEWLLM_STARTED_IN" not in os.environ:
        return argv
    words, previous = [], ""
    for word in argv:
        flag, equals, value = word.partition("=")
        named = flag if equals else previous
        key = named.removeprefix("--").replace("-", "_") if named.startswith("--") else ""
        if equals:
            word = f"{flag}={from_users_folder(key, value)}"
        elif not word.startswith("--"):
            is_file = word.endswith((".yaml", ".yml"))
            is_recipe = argv[0] == "train" and previous in ("train", "--background", "--foreground")
            # the first is a place in any case, the second where such a one is there
            key = "output_dir" if is_file else "data" if is_recipe else key
            word = str(from_users_folder(key, word))
        words.append(word)
        previous = flag if not equals else ""
    return words


def _run(arguments: argparse.Namespace) -> int:
    """Call the command's handler: it returns None, an exit code, or with --json the result."""
    if not arguments.json:
        return arguments.handler(arguments) or 0
    console.use_stderr()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a library that prints must not spoil the one object
            result = arguments.handler(arguments)
    finally:
        console.use_stderr(False)
    print(console.printable(json.dumps(_plain(result), ensure_ascii=False)))
    return 0


def _plain(value: object) -> object:
    """`value` as JSON knows it: no number that is none (NaN, infinity)."""
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _failed(line: str, code: int, debug: bool) -> int:
    if debug:
        console.show(without_secrets(traceback.format_exc()), sys.stderr)
    who = "newllm" if _RANK == "0" else f"newllm, process {_RANK}"
    console.show(f"{who}: {console.printable(' '.join(line.splitlines()))}", sys.stderr)
    return code
