"""A small model behind a live server, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time

import pytest

from newllm_lib.checkpoints import load_model
from newllm_lib.serve.app import Limits, listen, make_app, make_server
from newllm_lib.serve.engine import Engine
from tests.helpers.foreign_models import make_model


class Served:
    """An engine at `address`."""

    def __init__(self, engine: Engine, limits: Limits | None = None):
        self.engine = engine
        self.app, bound = make_app(engine, limits), listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        self.server = make_server(self.app)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture
def serving():
    """serving(engine, limits): a server that is closed at the end."""
    made = []

    def start(engine, limits=None) -> Served:
        made.append(Served(engine, limits))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """engine(form): a tiny Qwen2 with a chat template in that form, or without one."""
    place = tmp_path_factory.mktemp("served")

    def make(form: str | None = "qwen2") -> Engine:
        folder = place / (form or "base")
        if not folder.is_dir():
            make_model(folder, "qwen2", form=form)
        loaded = load_model(folder)
        loaded.model.config.max_position_embeddings = 4000
        return Engine(loaded)

    return make
