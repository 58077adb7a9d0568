"""The suite once with the transformers, datasets, peft, accelerate and trl of Colab's August 2026 image, on
CPU torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
ROOT = Path(__file__).parents[2]
LIST = "colab-gpu-pip-freeze.2026-08.txt"
# What the image has of ours, with what they load; trl is not in it: the version that pip chooses there.
OF_THE_IMAGE = (
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "accelerate",
    "huggingface_hub",
    "pyarrow",
    "dill",
    "multiprocess",
    "fsspec",
    "ipywidgets",
    "ipython_genutils",
    "matplotlib",
    "safetensors",
    "httpx",
    "httpcore",
    "h11",
    "anyio",
    "certifi",
    "sniffio",
    "requests",
    "urllib3",
    "charset_normalizer",
    "idna",
)
ADDED = ("trl==0.29.1",)


@pytest.fixture(scope="module")
def packages(test_data, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with these versions, to stand before everything that is installed."""
    lines = (test_data / LIST).read_text().splitlines()
    there = {
        name.lower().replace("-", "_"): version
        for name, _, version in (line.partition("==") for line in lines)
    }
    wanted = {name: there[name] for name in OF_THE_IMAGE}
    folder = tmp_path_factory.mktemp("packages")
    words = [f"{name}=={version}" for name, version in wanted.items()] + list(ADDED)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
    ]
    done = subprocess.run([*pip, str(folder), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, wanted


def test_the_suite_passes_with_the_images_versions(packages):
    folder, wanted = packages
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import transformers, datasets; print(transformers.__version__, datasets.__version__)",
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert shown.stdout.split() == [wanted["transformers"], wanted["datasets"]], shown.stderr[-2000:]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "not slow and not gpu",
            "-p",
            "no:cacheprovider",
            "tests",
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 1500
