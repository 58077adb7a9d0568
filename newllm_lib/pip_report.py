"""What colab_bootstrap.sh asks about packages before ours are there: standard library only.

    python -m newllm_lib.pip_report keep PLACE
        pip's constraints: what must stay as it is, else the tested versions
    python -m newllm_lib.pip_report report PLACE SECONDS
        what pip or uv did, in two or three lines
    python -m newllm_lib.pip_report whole PLACE [PYTHON]
        exit code 1 where this Python does not find what a training imports; a line where PYTHON is another

PLACE is where the packages go: `.venv`, or `.` for the Python that runs this (Colab's), of which no package
may be moved.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NOTES = ".newllm-setup"  # the beginning of all file names that an installation leaves in PLACE
# left alone where a .venv stands on a system's torch
_WITH_TORCH = r"torch|torchvision|torchaudio|triton|numpy|nvidia-.*"
_SHOWN = ("torch", "numpy", "transformers", "datasets", "peft", "accelerate")
_NEEDED = ("torch", "transformers", "datasets", "accelerate", "safetensors", "tokenizers", "numpy", "yaml")
_MOST = 6  # packages named in a line


def keep(place: str) -> list[str]:
    """pip's constraints: all that is installed on Colab; elsewhere the system's torch and its companions, and
    for the rest the tested versions."""
    colab = place == "."
    there: dict[str, str] = {}
    for d in metadata.distributions():
        if d.name and d.version and (colab or not str(d.locate_file("")).startswith(sys.prefix)):
            # of two copies Python takes the first, and so does pip
            there.setdefault(normal(d.name), d.version)
    there.pop("newllm", None)
    tested = (
        [] if colab else [line.strip() for line in open("constraints.txt", encoding="utf-8") if "==" in line]
    )
    kept = [
        f"{name}=={version}" for name, version in there.items() if colab or re.fullmatch(_WITH_TORCH, name)
    ]
    return [line for line in tested if normal(line.split("==")[0]) not in there] + kept


def whole(place: str, asked: str = "") -> list[str]:
    """Whether packages that were installed here are still there, without importing the large ones."""
    gone = [name for name in _NEEDED if getattr(importlib.util.find_spec(name), "origin", None) is None]
    if gone:
        sys.exit(f"{place}: {', '.join(gone)}")
    if place == "." or not asked:
        return []
    print_it = "import sys; print(*sys.version_info[:3], sep='.')"
    other = subprocess.run([asked, "-c", print_it], capture_output=True, text=True).stdout.strip()
    ours = ".".join(map(str, sys.version_info[:3]))
    if other in ("", ours):
        return []
    return [
        f"{place} has Python {ours}, and keeps it: for {asked} ({other}) move {place} away and start again."
    ]


def report(place: str, seconds: str) -> list[str]:
    """What was added, what was there before and how it fared, and that nothing has to be restarted."""
    notes = Path(place) / NOTES
    said = notes.with_name(f"{NOTES}-log").read_text(encoding="utf-8", errors="replace")
    by_pip = " ".join(re.findall(r"^Successfully installed (.*)$", said, re.MULTILINE)).split()
    by_uv = re.findall(r"^ \+ ([\w.-]+)==(\S+)", said, re.MULTILINE)
    came = {normal(name): version for name, version in [*(word.rsplit("-", 1) for word in by_pip), *by_uv]}
    kept = notes.with_name(f"{NOTES}-constraints").read_text(encoding="utf-8")
    before = dict(re.findall(r"^([\w.-]+)==([^\s;#]+)", kept, re.MULTILINE))
    added = {
        name: version
        for name, version in came.items()
        if name != "newllm" and (name not in before or place != ".")
    }
    moved = [
        f"{name} {before[name]} to {version}"
        for name, version in came.items()
        if before.get(name, version) not in (version, version.partition("+")[0])  # 2.13.0+cpu is 2.13.0
    ]
    lines = [f"Added: {_some(added)}"]
    if place == ".":
        lines.append(f"Moved: {', '.join(moved)}" if moved else f"Left as they were: {_some(before)}")
    restart = "restart the session (Runtime → Restart session)" if moved else "nothing has to be restarted"
    return [*lines, f"Installed in {seconds} s; {restart}"]


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _some(packages: dict[str, str]) -> str:
    """The best known of them with their versions, and how many more there are."""
    known = [name for name in _SHOWN if name in packages]
    named = (known + [name for name in packages if name not in known])[:_MOST]
    more = f" and {len(packages) - len(named)} more" if len(packages) > len(named) else ""
    return ", ".join(f"{name} {packages[name]}" for name in named) + more or "nothing"


if __name__ == "__main__":
    for line in {"keep": keep, "report": report, "whole": whole}[sys.argv[1]](*sys.argv[2:]):
        print(line)
