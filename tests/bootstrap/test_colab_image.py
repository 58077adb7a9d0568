"""On Colab's image of August 2026 the installation adds trl and the demo data and moves nothing; the newest
releases fit too.

pip resolves against a folder that says of each package, in its version, that it is installed: the image's
whole list, or torch.
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = "colab-gpu-pip-freeze.2026-08.txt"
# How pip is called with nothing installed but what the folder says: no site-packages.
PIP = """
import runpy, sys
sys.path[:0] = sys.argv.pop(1).split(":")
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__")
"""


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    """What `pip install -e ".[demo]"` asks for, as setup.py says it."""
    said, tools = {}, types.ModuleType("setuptools")
    tools.setup, tools.find_packages = lambda **words: said.update(words), lambda **words: []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", tools)
        runpy.run_path(str(ROOT / "setup.py"))
    return [*said["install_requires"], *said["extras_require"]["demo"]]


@pytest.fixture(scope="module")
def image(test_data) -> dict[str, str]:
    """Name to version of all that Colab has installed."""
    lines = (test_data / LIST).read_text().splitlines()
    found = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    for line in lines:  # name @ address: the version stands in the file's name, if anywhere
        if " @ " in line and (match := re.search(r"-(\d[\w.]*)(-|\.tar)", line.rpartition("/")[2])):
            found[line.split(" @ ")[0]] = match[1]
    assert len(found) > 650 and found["torch"] == "2.11.0+cu128"
    return {normal(name): version for name, version in found.items()}


def plan(there: dict[str, str], installed: Path) -> dict[str, str]:
    """What pip would install where `there` is installed and must stay, as colab_bootstrap.sh asks it to: name
    to version.
    """
    for name, version in there.items():
        information = installed / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (information / "INSTALLER").write_text("pip\n")
        (information / "RECORD").write_text("")
    constraints, report = installed / "constraints.txt", installed / "report.json"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in there.items()))
    words = [
        "install",
        "--dry-run",
        "--quiet",
        "--disable-pip-version-check",
        "--report",
        str(report),
        "-c",
        str(constraints),
        *requirements(),
    ]
    tools = installed / "tools"  # pip, without what is installed beside it
    tools.mkdir()
    (tools / "pip").symlink_to(Path(importlib.util.find_spec("pip").origin).parent)
    ended = subprocess.run(
        [sys.executable, "-S", "-c", PIP, f"{installed}:{tools}", *words],
        capture_output=True,
        text=True,
        cwd=installed,
    )
    assert ended.returncode == 0, ended.stdout[-1500:] + ended.stderr[-3000:]
    chosen = json.loads(report.read_text())["install"]
    return {normal(item["metadata"]["name"]): item["metadata"]["version"] for item in chosen}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_adds_trl_and_the_demo_data_and_moves_nothing(image, tmp_path):
    assert set(plan(image, tmp_path)) == {"trl", "chitchat-dataset"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_newest_releases_fit_together_and_torch_stays(tmp_path):
    """All but torch at whatever is newest today: nothing has to step back far for another's sake."""
    torch = {name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy")}
    chosen = plan({**torch, "triton": "3.6.0"}, tmp_path)
    assert not set(chosen) & set(torch)
    newest = {
        name: tuple(map(int, chosen[name].split(".")[:2]))
        for name in ("transformers", "datasets", "peft", "trl")
    }
    print(newest)
    assert newest["transformers"] >= (5, 23) and newest["datasets"] >= (5, 2), newest
    assert newest["peft"] >= (0, 21) and newest["trl"] >= (1, 16), newest
