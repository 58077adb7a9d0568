"""Where this code runs: Colab, another notebook or a terminal; and errors as one line, without traceback."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from newllm_lib import console
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
    quiet()
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
        print(f"⚠ {in_words_of_place(line)}")
    print(f"New-LLM is ready: Python {sys.version.split()[0]}, runs go to {Path.cwd() / 'checkpoints'}")


def quiet() -> None:
    """No warnings for programmers and no bars of libraries: they are red, and none of a reader's business."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers follows it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    libraries = r"(newllm_lib|torch|transformers|trl|peft|datasets|accelerate|huggingface_hub|google)(\.|$)"
    for kind in (UserWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=kind, module=libraries)
    if "transformers" in sys.modules:  # it has looked at the variables already
        console.quiet_libraries()


def in_words_of_place(line: str) -> str:
    """A line as this place calls things: only Colab has a menu *Runtime*."""
    if on_colab():
        return line
    return line.replace(
        "restart the session (Runtime → Restart session)", "restart the kernel (Kernel → Restart Kernel)"
    )


def one_line_errors() -> None:
    """In a notebook, what a reader can do something about is one line: our errors in the form's words, ■, and
    a name that a cell above would have made. Others keep their traceback."""
    instance = shell()
    if instance is not None:
        instance.set_custom_exc((NewLLMError, KeyboardInterrupt, NameError), _show)


# What cells make or import and later cells use: tests/notebooks/test_build.py compares.
MADE_BY_CELLS = (
    "settings run new_llm tiny_gpt2 comparison conversation chosen mixture pairs rate text experiments "
    "train wait chat compare read measure keep watch plan look report answer sweep "
    "show_data show_gates show_recall show_surprise"
).split()


def hear_no_more() -> None:
    """Ignore ■ for the rest of this cell, which is ending: a second one would fall into IPython's own code,
    which prints pages of it. Before the next cell the kernel listens again."""
    if shell() is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _show(instance, kind, error, traceback, tb_offset=None):
    hear_no_more()
    name = getattr(error, "name", None)
    if issubclass(kind, NameError) and name not in MADE_BY_CELLS:
        instance.showtraceback((kind, error, traceback), tb_offset=tb_offset)
        return None
    line = f"✗ {_in_one_line(kind, error)}"
    print(line, file=sys.stderr, flush=True)
    return [line]


def _in_one_line(kind: type, error: BaseException) -> str:
    if issubclass(kind, NameError):
        menu = "Runtime → Run before" if on_colab() else "Run → Run All Above Selected Cell"
        return f"{error.name} does not exist yet: a cell above makes it. Run the cells in order ({menu})."
    if issubclass(kind, KeyboardInterrupt):
        return "Stopped (■). What trains in the background goes on; the cells below did not run."
    from newllm_lib.colab.forms import in_form_words

    said = in_words_of_place(in_form_words(str(error))).rstrip()
    return f"{said}{'' if said.endswith('.') else '.'} The cells below did not run."
