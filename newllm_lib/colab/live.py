"""The live view: what runs are doing, drawn again and again until they end.

In a notebook it is a picture that is replaced in place, a line for each run and, where widgets render, a Stop
button; elsewhere lines of text and a PNG file. It only reads the run's folder: training neither knows nor
waits for it, and goes on when the view is closed.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons, curves
from newllm_lib.colab.environment import shell, widgets_render
from newllm_lib.colab.gpu_monitor import GpuMonitor
from newllm_lib.colab.history import History, samples
from newllm_lib.console import count, duration, say
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Run, atomic_write_bytes
from newllm_lib.training.dpo.curves import preference_figure

TEXT_EVERY = 10.0  # seconds between two lines where there is only text
_SHOWN_STATES = {"new": "not started", "dead": "ended without a word"}


class View:
    """What there is to show of some runs: a line each, and a picture of all."""

    def __init__(self, runs_shown: Sequence[Run], baselines: dict[str, float] | None = None):
        self.runs = list(runs_shown)
        self.baselines = baselines
        labels = short_labels([run.name for run in self.runs])
        self.histories = [
            History(run.metrics_path, label) for run, label in zip(self.runs, labels, strict=True)
        ]
        self.statuses = [runs.read_status(run) for run in self.runs]
        self.use = GpuMonitor()

    def update(self) -> bool:
        """Read what is new; True if the picture changes."""
        # The status first: what a run wrote before it ended is then read below.
        self.statuses = [runs.read_status(run) for run in self.runs]
        return any([history.update() for history in self.histories])

    @property
    def running(self) -> bool:
        return any(status["state"] == "running" for status in self.statuses)

    def lines(self) -> list[str]:
        """A line for each run; for those that train also the machine's use and the mirror's state."""
        shown = []
        for run, history, status in zip(self.runs, self.histories, self.statuses, strict=True):
            line = describe(run, history, status)
            if status["state"] == "running" and (use := self.use.describe(status["pid"])):
                line += f" | {use}"
            shown.append(line)
            shown += copy_line(run)
        return shown

    def samples(self) -> list[tuple[str, list[dict]]]:
        """(label, sample texts) of each run that has some."""
        found = [
            (h.label, samples(run.samples_path)) for run, h in zip(self.runs, self.histories, strict=True)
        ]
        return [(label, rows) for label, rows in found if rows]

    def png(self) -> bytes:
        if len(self.runs) == 1 and self.histories[0].prefers:
            return curves.png(preference_figure(self.runs[0]))
        return curves.png(curves.draw(self.histories, self.baselines))


def short_labels(names: list[str]) -> list[str]:
    """Names without the ending that all share: `new_llm`, `tinygpt2` for two runs on the same data."""
    words = [name.split("_") for name in names]
    while len(set(names)) > 1 and len({w[-1] for w in words}) == 1 and min(map(len, words)) > 1:
        words = [w[:-1] for w in words]
    return ["_".join(w) for w in words]


def describe(run: Run, history: History, status: dict) -> str:
    """One line: state, step, newest loss, speed, time left, best evaluation (✓)."""
    total = status["total_steps"]
    parts = [f"{run.name}: {_SHOWN_STATES.get(status['state'], status['state'])}"]
    if history.step:
        parts.append(
            f"step {history.step:,}"
            + (f" of {total:,} ({100 * history.step / total:.0f} %)" if total else "")
        )
        _, losses = history.series("loss")
        parts += [f"loss {losses[-1]:.3f}"] if losses else []
        if speed := history.tokens_per_second():
            parts.append(f"{count(speed)} tokens/s")
    if status["state"] == "running":
        left = history.seconds_left(total)
        parts += [f"{duration(left)} left"] if left is not None else []
        if not history.step:
            parts.append(runs.last_line(run) or status["message"] or "starting")
    elif status["state"] in ("failed", "dead", "interrupted") and status["message"]:
        parts.append(status["message"])
    if best := history.best:
        score = (
            f"{best['eval_bits_per_byte']:.3f} bits per byte"
            if "eval_bits_per_byte" in best
            else (f"held-out loss {best['eval_loss']:.3f}, accuracy {100 * best['eval_accuracy']:.1f} %")
        )
        parts.append(f"best {score} ✓ (epoch {best.get('epoch', 0):.3g})")
    return " | ".join(parts)


def copy_line(run: Run) -> list[str]:
    """One line about the run's copy on Drive, if it has one."""
    status = runs.mirror_status(run)
    if status is None:
        return []
    reached = f"step {status['step']:,}" if status["step"] is not None else "nothing to continue from yet"
    return [
        f"  copy in {status['folder']}: {reached}" + (f" | {status['message']}" if status["message"] else "")
    ]


def watch(
    *runs_shown: Run | str | Path,
    every: float = 2.0,
    baselines: dict[str, float] | None = None,
    picture: str | Path | None = None,
) -> list[dict]:
    """Show runs until none of them is being trained any more; returns their statuses.

    Interrupting (■) closes the view only: training goes on in the background.

    Args:
        runs_shown: runs, or their names or folders; several are overlaid.
        every: seconds between two looks.
        baselines: name to bits per byte, drawn as lines.
        picture: where the PNG goes where there is no notebook to show it (default: `live.png` in the first
            run's folder).
    """
    shown = [run if isinstance(run, Run) else runs.find_run(run) for run in runs_shown]
    view = View(shown, baselines)
    screen = NotebookScreen(shown) if shell() else TextScreen(Path(picture or shown[0].path / "live.png"))
    try:
        changed = True
        while True:
            changed = view.update() or changed
            changed = not screen.show(view, changed, last=not view.running)
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
    finally:
        screen.close(view.running)
    return view.statuses


class TextScreen:
    """Lines of text, at most one every few seconds for each run, and a PNG when it is over."""

    def __init__(self, picture: Path, every: float = TEXT_EVERY):
        self.picture, self.every = picture, every
        self.last_text, self.last_time = None, -every

    def show(self, view: View, changed: bool, last: bool) -> bool:
        """Returns whether the picture was brought up to date (here only at the end)."""
        now, text = time.monotonic(), "\n".join(view.lines())
        if text != self.last_text and (last or now - self.last_time >= self.every):
            say(text)
            self.last_text, self.last_time = text, now
        if last:
            atomic_write_bytes(self.picture, view.png(), durable=False)
            for label, rows in view.samples():
                say(f"{label}: {rows[-1]['prompts'][0]} … {rows[-1]['answers'][0]}")
            say(f"Curves: {self.picture}")
        return last

    def close(self, running: bool) -> None:
        pass


class NotebookScreen:
    """A picture and a text, updated in place so that the saved notebook keeps the last; buttons on top."""

    def __init__(self, runs_shown: Sequence[Run], redraw_every: float = 4.0):
        from IPython.display import display

        self.redraw_every, self.last_draw = redraw_every, -redraw_every
        self.buttons = StopButtons(runs_shown) if widgets_render() else None
        self.text = display(_text([]), display_id=True)
        self.said = None
        self.picture = None

    def show(self, view: View, changed: bool, last: bool) -> bool:
        """Returns whether the picture was brought up to date."""
        from IPython.display import Image, display

        self.text.update(_text(view.lines()))
        now = time.monotonic()
        if not changed or (now - self.last_draw < self.redraw_every and not last):
            return not changed
        image = Image(data=view.png(), format="png")
        if self.picture is None:
            self.picture = display(image, display_id=True)
        else:
            self.picture.update(image)
        self._show_samples(view.samples())
        self.last_draw = now
        return True

    def _show_samples(self, found: list[tuple[str, list[dict]]]) -> None:
        from IPython.display import display

        if not found:
            return
        if self.said is None:
            self.said = display(_samples(found), display_id=True)
        else:
            self.said.update(_samples(found))

    def close(self, running: bool) -> None:
        """When training is over the buttons go; when only the view was closed they stay and work."""
        if self.buttons and not running:
            self.buttons.close()


class StopButtons:
    """Two buttons for each run in training: save and stop, or save and go on."""

    def __init__(self, runs_shown: Sequence[Run]):
        import ipywidgets
        from IPython.display import display

        self.note = ipywidgets.Label()
        self.by_run, self.save_by_run = {}, {}
        for run in runs_shown:
            if runs.read_status(run)["state"] == "running":
                self.by_run[run.name] = _button(
                    f"Stop {run.name} · 停止",
                    "stop",
                    "Saves first; the same cell continues it later",
                    lambda pressed, run=run: self.stop(run, pressed),
                )
                self.save_by_run[run.name] = _button(
                    "Save · 保存",
                    "save",
                    "A checkpoint now; training goes on",
                    lambda pressed, run=run: self.save(run),
                )
        pairs = [button for name in self.by_run for button in (self.by_run[name], self.save_by_run[name])]
        self.box = ipywidgets.HBox([*pairs, self.note])
        if self.by_run:
            display(self.box)

    def save(self, run: Run) -> None:
        try:
            asked = runs.ask_to_save(run)
        except NewLLMError as error:
            self.note.value = str(error)
        else:
            self.note.value = (
                f"{run.name}: saving after this step" if asked else f"{run.name} is not training now"
            )

    def stop(self, run: Run, button) -> threading.Thread:
        """Ask in a thread, for saving takes a while and the view must go on."""
        button.disabled = True
        self.note.value = f"{run.name}: saving, then stopping …"
        thread = threading.Thread(target=self._stop, args=(run,), daemon=True)
        thread.start()
        return thread

    def _stop(self, run: Run) -> None:
        try:
            status = runs.stop(run)
        except NewLLMError as error:
            self.note.value = str(error)
        else:
            self.note.value = f"{run.name}: {status['state']}. {status['message']}"

    def close(self) -> None:
        self.box.close()


def _button(label: str, icon: str, tooltip: str, action):
    import ipywidgets

    button = ipywidgets.Button(
        description=label, tooltip=tooltip, icon=icon, layout=ipywidgets.Layout(width="auto")
    )
    button.on_click(action)
    buttons.answer_on_its_own_thread(button)
    return button


def _samples(found: list[tuple[str, list[dict]]], shown: int = 6):
    """The first, the newest, and some between, of each run's sample texts."""
    from IPython.display import HTML

    parts = []
    for label, rows in found:
        picked = (
            rows
            if len(rows) <= shown
            else [rows[round(i * (len(rows) - 1) / (shown - 1))] for i in range(shown)]
        )
        lines = "".join(
            f"<tr><td style='color:#6b7280; white-space:nowrap'>epoch {row['epoch']:.3g}</td><td "
            f"style='text-align:left'><span style='color:#6b7280'>{html.escape(row['prompts'][0])}</span> "
            f"{html.escape(row['answers'][0])}</td></tr>"
            for row in picked
        )
        title = f"{html.escape(label)}: what it says · サンプル"
        parts.append(f"<details open><summary>{title}</summary><table>{lines}</table></details>")
    return HTML("".join(parts))


def _text(lines: list[str]):
    from IPython.display import HTML

    shown = "<br>".join(html.escape(line) for line in lines) or "starting …"
    return HTML(f'<div style="font-family: monospace; white-space: pre-wrap">{shown}</div>')
