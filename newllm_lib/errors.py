"""The errors a user may see: one line each, saying what happened and what to do about it.

The `newllm` command prints the line and exits with `exit_code`; a traceback is shown only with `--debug`.
"""


class NewLLMError(Exception):
    """Something the user must know about: the message is one line with the cause and the remedy."""

    exit_code = 1


class UsageError(NewLLMError):
    """The command, a flag, a recipe key or a path was wrong: nothing was started, nothing was changed."""

    exit_code = 2


class Interrupted(NewLLMError):
    """Stopped by Ctrl-C or SIGTERM, after saving."""

    exit_code = 130
