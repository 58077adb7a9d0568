"""Each notebook in a real browser: run from the top, widgets drawn, Stop stops and saves, the rest runs on,
the chat answers.

Needs JupyterLab, Playwright and Chromium (`make test-slow` installs the first two; Chromium: `apt-get install
chromium`, or `playwright install --with-deps chromium`). Pictures of what was seen go to artefacts/ in the
clone.
"""

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

from newllm_lib.runs import Run, find_run, is_complete, is_finished, read_status
from tests.notebooks.test_run import NOTEBOOKS, TINY, write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "artefacts"
STEPS = 1200  # long enough for a click to come before the end
# Preference training has five runs, all to their end, and a rate at which the small base's answers do not
# fall apart.
LONG = {"04_dpo_lora": {"max_steps": 150, "learning_rate": 1e-6}}
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


@pytest.fixture(params=sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def tab(request, tmp_path, monkeypatch):
    """The notebook in a browser with its kernel waiting, on small data."""
    if MISSING:
        pytest.fail(
            f"needs {', '.join(MISSING)}: `make test-slow` installs them (.venv/bin/pip install -e "
            ".[demo,dev,browser])"
        )
    from playwright.sync_api import sync_playwright

    name, folder = request.param, tmp_path / "work"
    folder.mkdir()
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", folder)
    small = {
        **TINY[name],
        "max_steps": STEPS,
        "epochs": 1000.0,
        **LONG.get(name, {}),
        **write_data(name, folder / "data"),
    }
    monkeypatch.chdir(folder)  # where the notebook's kernel works, so that its runs are found
    with jupyterlab(folder, small) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1560, "height": 1500})
        page.set_default_timeout(5 * MINUTES)
        opened = Tab(page, name, folder)
        opened.open(address)
        yield opened
        page.screenshot(path=str(PICTURES / f"{name[:2]}-end.png"))
        browser.close()


def test_it_runs_stops_saves_goes_on_and_answers(tab):
    PICTURES.mkdir(exist_ok=True)
    tab.run_all()
    stopped = stop_the_first_training(tab)
    until(lambda: tab.errors(), 60, "the notebook went on behind a training that was stopped")
    assert any(f"{stopped.name} was stopped and is saved" in text for text in tab.errors()), tab.errors()

    tab.wait_until_idle()
    tab.run_all()  # the same cells again: it goes on where it stopped
    line = tab.page.locator("input[placeholder*='press Enter']")
    until(lambda: line.count() or tab.errors(), 900, "the notebook did not come to the chat")
    tab.wait_until_idle()
    assert tab.errors() == [] and is_finished(stopped)
    assert "Continuing from checkpoint-" in stopped.log.read_text(encoding="utf-8")
    assert tab.page.locator(".jp-OutputArea .nl svg").count() >= 1
    if tab.page.locator(".jp-OutputArea table").count():
        tab.picture("result", "table")

    turns = tab.page.locator(".widget-html-content div", has=tab.page.locator("b", has_text="model"))
    before = turns.count()
    assert before >= 1  # the cell itself said something first
    line.fill("How are you today?")
    line.press("Enter")
    until(
        lambda: turns.count() > before and turns.last.inner_text().strip() not in ("model", "model …"),
        180,
        "no answer came",
    )
    tab.wait_until_idle()
    tab.picture("chat", "input[placeholder*='press Enter']")


def stop_the_first_training(tab) -> Run:
    """Press Stop after the first evaluation; the run, saved and stopped before its end."""
    button = tab.stop_button().first
    button.wait_for()
    run = find_run(button.get_attribute("title").split()[1])  # "Saves NAME first; …"
    until(lambda: any("eval_loss" in row and row["step"] for row in run.metrics()), 600, "no evaluation came")
    tab.page.locator(".jp-OutputArea .nl svg").first.wait_for()
    time.sleep(6)  # the picture is drawn again every few seconds
    assert tab.page.locator("button.jupyter-button", has_text="Save").count() >= 1
    tab.picture("live", "button.jupyter-button")
    button.click()
    until(
        lambda: read_status(run)["state"] == "interrupted", 240, f"Stop did not stop it: {read_status(run)}"
    )
    status = read_status(run)
    assert is_complete(run.latest_checkpoint()) and status["step"] < status["total_steps"]
    return run
