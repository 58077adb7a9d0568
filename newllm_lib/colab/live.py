"""The live view: what runs are doing, drawn again and again until they end.

In a notebook a thread draws it, so the cell ends, the kernel is free, and the cell can be run again to look
again; elsewhere it is lines of text and a PNG file, until the runs end. It only reads a run's folder:
training neither knows nor waits for it, and goes on when the view is closed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons, curves, pictures
from newllm_lib.colab.environment import shell
from newllm_lib.colab.gpu_monitor import GpuMonitor
from newllm_lib.colab.history import History, samples
from newllm_lib.colab.live_widgets import NotebookView
from newllm_lib.colab.look import Look, copy_line, counted, guessing, look
from newllm_lib.console import say
from newllm_lib.runs import Run, atomic_write_bytes
from newllm_lib.training.dpo.curves import preference_figure
from newllm_lib.training.report import FILE as REPORT

TEXT_EVERY = 10.0  # seconds between two lines where there is only text


class View:
    """What there is to show of some runs: a look at each, and a picture of all."""

    def __init__(self, runs_shown: Sequence[Run], baselines: dict[str, float] | None = None):
        self.runs = list(runs_shown)
        self.baselines = dict(baselines or {})
        self.counted = baselines is not None
        labels = curves.short_labels([run.name for run in self.runs])
        self.histories = [
            History(run.metrics_path, label) for run, label in zip(self.runs, labels, strict=True)
        ]
        self.statuses = [runs.read_status(run) for run in self.runs]
        self.use = GpuMonitor()

    def update(self) -> bool:
        """Read what is new; True if the picture changes."""
        # The status first: what a run wrote before it ended is then read below.
        self.statuses = [runs.read_status(run) for run in self.runs]
        changed = any([history.update() for history in self.histories])
        return self._count() or changed

    def _count(self) -> bool:
        """The unigram and bigram tables on the first run's text, once its tokenizer is there; True if new."""
        run = self.runs[0]
        if self.counted or not self.histories[0].evaluations or self.histories[0].prefers:
            return False
        if not (run.path / REPORT).is_file() and not run.best.is_dir():
            return False
        self.counted, self.baselines = True, counted(run)
        return bool(self.baselines)

    @property
    def running(self) -> bool:
        return any(status["state"] == "running" for status in self.statuses)

    def looks(self) -> list[Look]:
        return [
            look(run, history, status, self.use)
            for run, history, status in zip(self.runs, self.histories, self.statuses, strict=True)
        ]

    def lines(self) -> list[str]:
        """A line for each run; for those that train also the machine's use and the mirror's state."""
        shown = []
        for run, found in zip(self.runs, self.looks(), strict=True):
            parts = [f"{found.name}: {found.state}", *found.facts, found.doing, found.message]
            shown.append(" | ".join(part for part in parts if part))
            shown += copy_line(run)
        return shown

    def samples(self) -> list[tuple[str, list[dict]]]:
        """(label, sample texts) of each run that has some."""
        found = [
            (h.label, samples(run.samples_path)) for run, h in zip(self.runs, self.histories, strict=True)
        ]
        return [(label, rows) for label, rows in found if rows]

    @property
    def has_picture(self) -> bool:
        """Nothing is drawn of a run that ended before it had figures: two empty axes say nothing."""
        return self.running or any(history.step for history in self.histories)

    def figure(self):
        if len(self.runs) == 1 and (found := preference_figure(self.runs[0])) is not None:
            if self.histories[0].prefers:
                return found
        totals = [status["total_steps"] or 0 for status in self.statuses]
        return curves.draw(self.histories, self.baselines, max(totals) or None, guessing(self.runs[0]))

    def png(self) -> bytes:
        return pictures.png(self.figure())


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
