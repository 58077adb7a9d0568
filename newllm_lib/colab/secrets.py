"""The hub's token from Colab's secrets (the key icon); it goes to the hub and nowhere else."""

from __future__ import annotations

import os

from newllm_lib.colab.environment import on_colab
from newllm_lib.errors import UsageError

NAME = "HF_TOKEN"


def hub_token() -> str | None:
    """The token: `HF_TOKEN` of the environment, or Colab's secret of that name; None where there is neither.

    Raises:
        UsageError: the secret is there, but this notebook may not read it.
    """
    if os.environ.get(NAME) or not on_colab():
        return os.environ.get(NAME)
    from google.colab import userdata

    try:
        return userdata.get(NAME)
    except Exception as error:  # Colab has an exception of its own for each case, named after it
        if type(error).__name__ == "NotebookAccessError":
            raise UsageError(
                f"This notebook may not read the secret {NAME}: switch it on under the key icon."
            ) from None
        return None
