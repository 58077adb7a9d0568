"""Where this code runs: Colab, another notebook or a terminal; and errors as one line, without traceback."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from newllm_lib.device import stale_packages
from newllm_lib.errors import NewLLMError


def on_colab() -> bool:
    """Whether this kernel runs in Google Colab."""
    return "google.colab" in sys.modules or bool(os.environ.get("COLAB_RELEASE_TAG"))


def shell():
    """The running IPython kernel, or None in a terminal or a script."""
    ipython = sys.modules.get("IPython")
    instance = ipython.get_ipython() if ipython else None
    return instance if hasattr(instance, "kernel") else None


def widgets_render() -> bool:
    """Whether buttons can be shown: a notebook kernel with ipywidgets. `NEWLLM_WIDGETS=0` says no."""
    if os.environ.get("NEWLLM_WIDGETS") == "0" or shell() is None:
        return False
    return importlib.util.find_spec("ipywidgets") is not None


def clone_root(start: Path | None = None) -> Path | None:
    """The clone of the repository around `start` (default: the current folder), or None."""
    start = Path(start or Path.cwd()).resolve()
    return next((p for p in (start, *start.parents) if (p / "colab_bootstrap.sh").is_file()), None)


def ready(clone: Path | None = None) -> None:
    """Make this kernel ready: our errors as one line, work in the clone's top folder, and report.

    Args:
        clone: the clone that the install cell found or made (default: the one around the current folder, if
            any).
    Raises:
        NewLLMError: a package is missing in the Python that runs this notebook.
    """
    one_line_errors()
    missing = [
        name
        for name in ("torch", "transformers", "datasets", "matplotlib")
        if not importlib.util.find_spec(name)
    ]
    if missing:
        raise NewLLMError(
            f"{', '.join(missing)} missing in {sys.executable}: choose the clone's .venv as this notebook's "
            f"kernel, or run {sys.executable} -m pip install {' '.join(missing)}"
        )
    root = clone or clone_root()
    if root is not None:
        os.chdir(root)
    for line in stale_packages():
        print(f"⚠ {line}")
    print(f"New-LLM is ready: Python {sys.version.split()[0]}, runs go to {Path.cwd() / 'checkpoints'}")


def one_line_errors() -> None:
    """In a notebook, show `NewLLMError` as one line (cause and remedy); others keep their traceback."""
    instance = shell()
    if instance is not None:
        instance.set_custom_exc((NewLLMError,), _show)


def _show(instance, kind, error, traceback, tb_offset=None):
    line = f"✗ {error}"
    print(line, file=sys.stderr, flush=True)
    return [line]
