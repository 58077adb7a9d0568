"""A notebook in a real browser: run from the top, widgets drawn, Stop stops and saves, the rest runs on, the chat answers.

Needs JupyterLab, Playwright and Chromium. Screenshots go to artefacts/ in the clone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from newllm_lib.runs import Run, is_whole, read_status
from tests.notebooks.test_run import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAME = "01_wikitext_pretraining"
STEPS = 1500  # long enough for a click to come before the end
MINUTES = 60_000  # in Playwright's milliseconds


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that shows the notebooks in a folder of their own, and that folder."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab")
    pytest.importorskip("chitchat_dataset", reason="needs the demo data: pip install chitchat-dataset")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / f"{NAME}.ipynb", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = {**TINY[NAME], "max_steps": STEPS, "epochs": 100.0}
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # else only what is in view is drawn
    environment = {
        **os.environ, "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps(small), "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }  # fmt: skip
    words = [
        "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--expose-app-in-browser", "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5)
            break
        except OSError:
            assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
    yield address, folder
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    """The notebook, open and with its kernel waiting."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian, Ubuntu: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(5 * MINUTES)
        page.goto(f"{lab[0]}/lab/tree/{NAME}.ipynb")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator")
        answer_questions(page)
        yield page
        browser.close()


def answer_questions(page) -> None:
    """JupyterLab may ask which kernel to take; wait until the kernel is idle and nothing has been asked for a while."""
    quiet, idle = 0, page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    while quiet < 10:
        accept = page.locator(".jp-Dialog button.jp-mod-accept")
        quiet = quiet + 1 if not accept.count() and idle.count() else 0
        if accept.count():
            accept.first.click()
        time.sleep(1)


def run_all(page) -> None:
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def shot(page, name: str, selector: str) -> None:
    """A picture of the cell output around the first element that matches."""
    (ROOT / "artefacts").mkdir(exist_ok=True)
    output = page.locator(f".jp-OutputArea:has({selector})").first
    output.scroll_into_view_if_needed()
    time.sleep(1)
    output.screenshot(path=str(ROOT / "artefacts" / f"{name}.png"))


def until(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def ours(folder: Path) -> Run | None:
    return next((Run(p) for p in (folder / "checkpoints").glob("new_llm_demo*") if p.is_dir()), None)


def test_stop_stops_and_saves_and_the_rest_runs_to_the_chat(page, lab):
    folder = lab[1]
    run_all(page)
    stop = page.locator("button.jupyter-button", has_text="Stop new_llm")
    stop.first.wait_for()
    until(lambda: any("eval_loss" in row for row in ours(folder).metrics()), 300, "no evaluation came")
    page.locator(".jp-OutputArea img").first.wait_for()
    shot(page, "dashboard", "button.jupyter-button")
    stop.first.click()
    until(lambda: read_status(ours(folder))["state"] == "interrupted", 200, "Stop did not stop it")
    stopped_at = read_status(ours(folder))["step"]
    assert is_whole(ours(folder).latest_checkpoint()) and stopped_at < STEPS
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    run_all(page)  # the same cells again: it goes on where it stopped
    page.locator("input[placeholder*='press Enter']").wait_for(timeout=15 * MINUTES)
    assert ours(folder).is_finished and "Continuing from checkpoint-" in ours(folder).log.read_text()
    shot(page, "comparison", "table, img[src*='png']")
    said = page.locator("input[placeholder*='press Enter']")
    said.fill("How are you today?")
    said.press("Enter")
    bubbles = page.locator(".jp-OutputArea div", has=page.locator("b", has_text="model"))
    page.get_by_text("How are you today?", exact=False).last.wait_for()
    until(lambda: page.locator("b", has_text="model").count() >= 2, 120, "the chat did not answer")
    time.sleep(3)
    assert bubbles.count() >= 1
    shot(page, "chat", "input[placeholder*='press Enter']")
