"""A notebook in a JupyterLab in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PICTURES = ROOT / "artefacts"


MINUTES = 60_000  # in Playwright's milliseconds


MISSING = [
    name
    for name in ("jupyterlab", "playwright", "chitchat_dataset")
    if importlib.util.find_spec(name) is None
]


IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"


OUTPUT = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{}']"


def chromium(playwright) -> str:
    """The browser's program; a machine with all packages but no browser fails, for nothing was
    shown there.
    """
    own = playwright.chromium.executable_path
    names = ("chromium", "chromium-browser", "google-chrome")
    found = own if os.path.exists(own) else next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "Chromium is missing: `apt-get install chromium`, or `playwright install --with-deps chromium`."
        )
    return found


@contextmanager
def jupyterlab(folder: Path, overrides: dict):
    """The address of a JupyterLab that shows `folder`; its kernels are told the overrides."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hidden = folder.parent / "lab"
    for name, text in {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # else only what is in view is drawn
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    }.items():
        settings = hidden / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(text)
    environment = {
        **os.environ,
        "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps(overrides),
        "JUPYTER_CONFIG_DIR": str(hidden / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(hidden / "settings"),
    }
    words = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--expose-app-in-browser",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with open(hidden / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(
            lambda: answers(f"{address}/api/status") or server.poll() is not None,
            180,
            "JupyterLab did not start",
        )
        assert server.poll() is None, (hidden / "log").read_text()[-2000:]
        yield address
    finally:
        server.terminate()
        server.wait(60)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def until(condition, seconds: float, what: str):
    """What `condition` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.3)
    return found


class Tab:
    """A notebook open in the browser."""

    def __init__(self, page, name: str, folder: Path):
        self.page, self.name, self.folder = page, name, folder

    def open(self, address: str) -> None:
        self.page.goto(f"{address}/lab/tree/{self.name}.ipynb")
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator")
        quiet = 0
        while quiet < 6:  # JupyterLab may ask which kernel to take, and other things
            accept = self.page.locator(".jp-Dialog button.jp-mod-accept")
            quiet = quiet + 1 if not accept.count() and self.page.locator(IDLE).count() else 0
            if accept.count():
                accept.first.click()
            time.sleep(1)
        self.page.evaluate("() => { window.jupyterapp.commands.execute('application:toggle-left-area') }")

    def run_all(self) -> None:
        """Begin; the command's promise, for which `evaluate` would wait, is kept only when the last cell has
        ended.
        """
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")

    def wait_until_idle(self, minutes: float = 15) -> None:
        self.page.wait_for_selector(IDLE, timeout=minutes * MINUTES)

    def stop_button(self):
        """Of a training that is meant to be stopped (notebook 5's ten steps are not)."""
        return self.page.locator(
            "button.jupyter-button:enabled[title^='Saves ']:not([title*='phase7_test'])", has_text="Stop"
        )

    def picture(self, what: str, selector: str) -> None:
        """A picture of the cell's output around the last element that matches."""
        PICTURES.mkdir(exist_ok=True)
        output = self.page.locator(f".jp-Cell-outputWrapper:has({selector})").last
        output.scroll_into_view_if_needed()
        time.sleep(1)
        output.screenshot(path=str(PICTURES / f"{self.name[:2]}-{what}.png"))

    def errors(self) -> list[str]:
        """What went wrong in cells: our own errors, which are one line, and tracebacks."""
        own = self.page.locator(OUTPUT.format("stderr"), has_text="✗").all_inner_texts()
        return own + self.page.locator(OUTPUT.format("error")).all_inner_texts()
