"""In a real browser: a tab that is closed and comes back, ■, ■■, a restarted kernel, cells out of order, and
a draft in the chat.

Needs what test_browser.py needs.
"""

from __future__ import annotations

import os
import shutil
import time

import pytest

from newllm_lib.runs import find_run
from tests.helpers.browser import MINUTES, MISSING, PICTURES, Tab, chromium, jupyterlab, until
from tests.helpers.notebooks import NOTEBOOKS, TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NAME = "01_wikitext_pretraining"
SOON = 3.0  # seconds within which something must be seen, on a machine that does nothing else
PLACE = """(start) => window.jupyterapp.shell.currentWidget.content.widgets.findIndex(
  cell => cell.model.sharedModel.source.includes(start))"""
CELL = """(start) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const place = notebook.widgets.findIndex(cell => cell.model.sharedModel.source.includes(start));
  notebook.activeCellIndex = place;
  notebook.deselectAll();
  window.jupyterapp.commands.execute('notebook:run-cell');
  return place;
}"""


def soon() -> float:
    """`SOON`, stretched by what else this machine does."""
    return SOON * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Cells(Tab):
    """A notebook whose cells are run one by one."""

    def run(self, start: str) -> int:
        """Run the cell that holds `start`; its place."""
        return self.page.evaluate(CELL, start)

    def place(self, start: str) -> int:
        """Where the cell is that holds `start`."""
        return self.page.evaluate(PLACE, start)

    def output(self, place: int):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(place).locator(".jp-Cell-outputWrapper")

    def do(self, command: str) -> None:
        self.page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{command}') }}")

    def restart(self) -> None:
        """A new kernel for the same notebook."""
        self.page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
        )
        self.wait_until_idle()

    def said(self, place: int, text: str, minutes: float = 3) -> str:
        """The output of a cell, once it holds `text`."""
        found = self.output(place)
        until(lambda: text in found.inner_text(), 60 * minutes, f"no {text!r} in {found.inner_text()!r}")
        return found.inner_text()


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """(tab with notebook 1 in it, a function that closes it and opens another)."""
    if MISSING:
        pytest.fail(f"needs {', '.join(MISSING)}: `make test-slow` installs them")
    from playwright.sync_api import sync_playwright

    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(NOTEBOOKS / f"{NAME}.ipynb", folder)
    small = {**TINY[NAME], "max_steps": 4000, "epochs": 1000.0, "logging_steps": 5, "max_samples": 300}
    monkeypatch.chdir(folder)
    with jupyterlab(folder, small) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=["--no-sandbox"])

        def new_tab() -> Cells:
            page = browser.new_page(viewport={"width": 1400, "height": 1200})
            page.set_default_timeout(5 * MINUTES)
            return Cells(page, NAME, folder)

        tab = new_tab()
        tab.open(address)
        yield tab, new_tab, address
        PICTURES.mkdir(exist_ok=True)
        for page in (page for context in browser.contexts for page in context.pages):
            page.screenshot(path=str(PICTURES / "traps-end.png"))
        browser.close()


def shown_again(tab: Cells) -> float:
    """Seconds until the training cell, run again, shows the run that goes on."""
    place, clicked = tab.run("new_llm = train(settings)"), time.monotonic()
    tab.said(place, "is already training")
    tab.output(place).locator(".nl svg").first.wait_for()
    seconds = time.monotonic() - clicked
    assert seconds < soon(), f"the run was shown again after {seconds:.1f} s"
    return seconds


def test_nothing_traps(opened):
    tab, new_tab, address = opened
    # cells out of order: one clear line
    place = tab.run("conversation = chat(")
    text = tab.said(place, "does not exist yet")
    assert "Run the cells in order" in text and "Traceback" not in text

    for start in ("#@title Install", "#@title Settings", "machine(settings)"):
        place = tab.run(start)
    tab.said(place, "All epochs would take")  # an idle kernel may only not have begun yet
    tab.wait_until_idle()
    place = tab.run("new_llm = train(settings)")
    clicked = time.monotonic()
    tab.output(place).locator(".nl svg").first.wait_for()
    first = time.monotonic() - clicked
    tab.wait_until_idle(1)  # the cell has ended, the view lives
    assert first < soon(), f"the first picture came after {first:.1f} s"
    tab.said(place, "step ")
    run = find_run(tab.stop_button().first.get_attribute("title").split()[1])

    # ■ ends the waiting, in one line; two of them too
    for presses in (1, 2):
        waiting = tab.run("wait(new_llm)")
        tab.said(waiting, "Waiting for new_llm")
        for _ in range(presses):
            tab.do("notebook:interrupt-kernel")
        text = tab.said(waiting, "✗ ")
        tab.wait_until_idle()
        assert text.count("✗") == 1 and "Traceback" not in text and "still training" in text

    # a tab that is closed and comes back
    tab.do("docmanager:save")
    time.sleep(2)
    tab.page.close()
    tab = new_tab()
    tab.open(address)
    came = time.monotonic()
    tab.output(place).locator(".nl svg").first.wait_for(timeout=60_000)
    back = time.monotonic() - came
    assert back < soon(), f"the tab that came back showed the run after {back:.1f} s"
    again = shown_again(tab)

    # a restarted kernel knows nothing, says so in one line, and training goes on
    tab.restart()
    place = tab.run("new_llm = train(settings)")
    text = tab.said(place, "settings does not exist yet")
    assert "Run the cells in order" in text and "Traceback" not in text
    for start in ("#@title Install", "#@title Settings"):
        place = tab.run(start)
    tab.said(place, "the same as a command")
    tab.wait_until_idle()
    restarted = shown_again(tab)
    place = tab.place("new_llm = train(settings)")
    print(
        f"the first picture after {first:.1f} s, in the tab that came back {back:.1f} s, by the cell run "
        f"again {again:.1f} s, after a restart {restarted:.1f} s; at most {soon():.1f} s beside other jobs"
    )

    # the best model so far, while it trains; a draft stays a draft
    until(lambda: run.best.is_dir(), 300, "no evaluation came")
    tab.run("conversation = chat(")
    line = tab.page.locator("input[placeholder*='press Enter']")
    line.wait_for()
    tab.wait_until_idle()
    mine = tab.page.locator(".widget-html-content b", has_text="you")
    before = mine.count()
    line.fill("half a mess")
    line.blur()
    time.sleep(2)
    assert mine.count() == before and line.input_value() == "half a mess"
    line.fill("How are you?")
    line.press("Enter")
    until(lambda: mine.count() == before + 1, 60, "Enter did not send")

    # Stop stops, and the view says so
    tab.stop_button().first.click()
    text = tab.said(place, "interrupted")
    assert "training" not in text.split("interrupted")[0].split("\n")[-1]
