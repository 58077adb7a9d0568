"""For all tests: no network, caches of their own, one thread; real data where NEWLLM_TEST_DATA names it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before anything imports torch or a hub's client: two test workers share two cores, and no test asks a hub on
# the network (nothing listens on this port; tests of the hub's protocol name a server of their own).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
# Processes that tests start, in whatever folder, use the package of this clone.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in (
    "NEWLLM_DEVICE",
    "NEWLLM_STARTED_IN",
    "NEWLLM_BACKGROUND",
    "NEWLLM_LOCK_FD",
    "COLAB_RELEASE_TAG",
):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """Prepared data and downloads of the tests go to a temporary folder, never to the user's."""
    caches = tmp_path_factory.mktemp("caches")
    before = {name: os.environ.get(name) for name in ("NEWLLM_CACHE", "HF_HOME")}
    os.environ["NEWLLM_CACHE"] = str(caches / "newllm")
    os.environ["HF_HOME"] = str(caches / "huggingface")
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _compiled_anew():
    """torch.compile gives a function up that it has compiled for too many kinds of arguments: each test
    begins from none.
    """
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with pieces of real data."""
    folder = os.environ.get("NEWLLM_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set NEWLLM_TEST_DATA to the folder that holds it (see README)")
    return Path(folder)


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped, with the reason, where torch sees no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
