"""The errors a user may see: one line each, saying what happened and what to do about it.

The `newllm` command prints the line and exits with `exit_code`; a traceback is shown only with `--debug`.
What else can go wrong on a user's machine (disk, network, memory, a damaged file) is in `cli.plain_errors`.
"""

from __future__ import annotations

import os
import re

_SECRETS = re.compile(
    r"(?<=://)[^\s/'\"]+@"  # a URL's user and token, which may hold an @
    r"|(?<=[?&])([\w.-]*(?i:token|key|secret|signature|password)[\w.-]*=)[^\s&'\"]+"
    r"|\b(?:hf|gh[a-z]|github_pat)_\w{16,}|\bglpat-[\w-]{16,}"
)


def without_secrets(text: str) -> str:
    """`text` without the user, token and signature of a URL, and without tokens of the hub and of GitHub."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if len(token := os.environ.get(name, "")) > 7:
            text = text.replace(token, "***")
    return _SECRETS.sub(r"\1", text)


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
