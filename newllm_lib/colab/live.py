"""The live view: what runs are doing, drawn again and again until they end.

In a notebook a thread draws it, so the cell ends, the kernel is free, and the cell can be run again to look
again; elsewhere it is lines of text and a PNG file, until the runs end. It only reads a run's folder:
training neither knows nor waits for it, and goes on when the view is closed."""

from __future__ import annotations

import time
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons
from newllm_lib.colab.environment import shell
from newllm_lib.colab.live_widgets import NotebookView
from newllm_lib.colab.look import View
from newllm_lib.console import say
from newllm_lib.runs import Run, atomic_write_bytes

TEXT_EVERY = 10.0  # seconds between two lines where there is only text


def watch(
    *runs_shown: Run | str | Path,
    every: float = 2.0,
    baselines: dict[str, float] | None = None,
    picture: str | Path | None = None,
) -> list[dict]:
    """Show runs until none of them is being trained any more; returns their statuses.

    In a notebook it returns at once and a thread goes on drawing. Elsewhere Ctrl-C closes the view only:
    training goes on in the background.

    Args:
        runs_shown: runs, or their names or folders; several are overlaid. every: seconds between two looks.
        baselines: name to bits per byte, drawn as lines (default: the tables of the first run's text, once
        they
            are counted).
        picture: where the PNG goes where there is no notebook to show it (default: `live.png` in the first
            run's folder).
    """
    shown = [run if isinstance(run, Run) else runs.find_run(run) for run in runs_shown]
    view = View(shown, baselines)
    if shell():
        NotebookView(view, every).show()
        return view.statuses
    screen = TextScreen(Path(picture or shown[0].path / "live.png"))
    try:
        while True:
            view.update()
            screen.show(view, last=not view.running)
            if not view.running:
                break
            buttons.wait(every)
    except KeyboardInterrupt:
        say(
            "The view is closed; training goes on in the background. Run the cell again to see it, or stop "
            "it with"
        )
        for run in shown:
            say(f"  !newllm runs stop {run.name}")
    return view.statuses


class TextScreen:
    """Lines of text, at most one every few seconds for each run, and a PNG when it is over."""

    def __init__(self, picture: Path):
        self.picture = picture
        self.last_text, self.last_time = None, -TEXT_EVERY

    def show(self, view: View, last: bool) -> None:
        now, text = time.monotonic(), "\n".join(view.lines())
        if text != self.last_text and (last or now - self.last_time >= TEXT_EVERY):
            say(text)
            self.last_text, self.last_time = text, now
        if last and view.has_picture:
            atomic_write_bytes(self.picture, view.png(), durable=False)
            for label, rows in view.samples():
                say(f"{label}: {rows[-1]['prompts'][0]} … {rows[-1]['answers'][0]}")
            say(f"Curves: {self.picture}")
