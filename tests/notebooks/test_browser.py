"""Each notebook in a real browser: run from the top, widgets drawn, Stop stops and saves, the rest runs on,
the chat answers.

Needs JupyterLab, Playwright and Chromium (`make test-slow` installs the first two; Chromium: `apt-get install
chromium`, or `playwright install --with-deps chromium`). Pictures of what was seen go to artefacts/ in the
clone.
"""

from __future__ import annotations

import shutil
import time

import pytest

from newllm_lib.runs import Run, find_run, is_complete, is_finished, read_status
from tests.helpers.browser import MINUTES, MISSING, PICTURES, Tab, chromium, jupyterlab, until
from tests.helpers.notebooks import NOTEBOOKS, TINY, write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
STEPS = 1200  # long enough for a click to come before the end
# Preference training has five runs, all to their end, and a rate at which the small base's answers do not
# fall apart.
LONG = {"04_dpo_lora": {"max_steps": 150, "learning_rate": 1e-6}}


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
