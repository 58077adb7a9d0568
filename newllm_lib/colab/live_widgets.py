"""The live view in a notebook: a picture that a thread draws, and the buttons of runs in training."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons, curves, pictures
from newllm_lib.colab.environment import widgets_render
from newllm_lib.colab.look import Look, View, copy_line, run_state
from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation.palette import styles
from newllm_lib.runs import Run

REDRAW_EVERY = 4.0  # seconds between two pictures
_STATE_COLOURS = {"running": "#009e73", "done": "#0072b2", "failed": "#d55e00", "dead": "#d55e00"}
_open_views: dict[Path, NotebookView] = {}  # by the first run's folder: one view of a run at a time


class NotebookView:
    """A view that a thread draws below the cell that asked for it, until its runs end."""

    def __init__(self, view: View, every: float):
        self.view, self.every = view, every
        self.key = view.runs[0].path.absolute()
        self.last_draw = -REDRAW_EVERY
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def show(self) -> None:
        """The first picture, at once; then the thread takes over, if there is more to come."""
        for run in self.view.runs:
            if before := _open_views.pop(run.path.absolute(), None):
                before.close()
        self.view.update()
        live = widgets_render() and self.view.running and not pictures.as_png()
        self.head, self.buttons = _place(live), None
        if live:
            self.buttons = StopButtons(self.view.runs)
        self.picture, self.said = _place(live), _place(live)
        self.draw()
        if self.view.running:
            _open_views[self.key] = self
            self.thread = threading.Thread(target=self._follow, name=f"view of {self.key.name}", daemon=True)
            self.thread.start()

    def draw(self, picture: bool = True) -> None:
        self.head.put(pictures.page("".join(map(_head, self.view.looks(), self.view.runs))))
        if picture and self.view.has_picture:
            described = "; ".join(self.view.lines())
            if pictures.as_png():
                self.picture.put_png(self.view.png())
            else:
                self.picture.put(pictures.page(pictures.svg(self.view.figure(), described)))
            self.said.put(pictures.page(sample_texts(self.view.samples())))
            self.last_draw = time.monotonic()

    def _follow(self) -> None:
        waiting = False  # something new that the picture does not show yet
        while not self.ended.wait(self.every):
            try:
                waiting = self.view.update() or waiting
                over = not self.view.running
                due = over or (waiting and time.monotonic() - self.last_draw >= REDRAW_EVERY)
                self.draw(picture=due)
                waiting = waiting and not due
            except Exception as error:  # a thread's own traceback would be seen by nobody
                said = (
                    f"The view stopped ({type(error).__name__}: {error}). Run the cell again to see the run."
                )
                self.head.put(pictures.page(html.escape(said)))
                return
            if over:  # what it shows is final, and stays when another cell shows the run again
                _open_views.pop(self.key, None)
                break
        if self.buttons and not self.ended.is_set():
            self.buttons.close()

    def close(self) -> None:
        """Another cell shows the run now. If it has ended meanwhile, this shows its end and stays."""
        self.ended.set()
        if self.thread:
            self.thread.join(timeout=10)
        self.view.update()
        if not self.view.running:
            self.draw()
            if self.buttons:
                self.buttons.close()
            return
        for place in (self.picture, self.said):
            place.put("")
        self.head.put(pictures.page("This run is shown again by a cell that was run later."))
        if self.buttons:
            self.buttons.close()


def settle(run: Run, most: float = 10.0) -> None:
    """Return when the view of a run that has ended shows its end, after `most` seconds at the latest."""
    shown = _open_views.get(run.path.absolute())
    if shown is None or shown.thread is None:
        return
    if not any(runs.read_status(one)["state"] == "running" for one in shown.view.runs):
        shown.thread.join(timeout=most)


class _Widget:
    """A place in the output that a thread may fill; a tab that comes back gets its content from the
    kernel."""

    def __init__(self):
        import ipywidgets
        from IPython.display import display

        self.widget = ipywidgets.HTML(layout={"overflow": "visible"})
        display(self.widget)

    def put(self, text: str) -> None:
        if self.widget.value != text:
            self.widget.value = text


class _Output:
    """The same without widgets: an output that is replaced, and stored with the notebook."""

    def __init__(self):
        self.handle = None

    def put(self, text: str) -> None:
        from IPython.display import HTML

        self._show(HTML(text))

    def put_png(self, data: bytes) -> None:
        from IPython.display import Image

        self._show(Image(data=data, format="png"))

    def _show(self, content) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(content, display_id=True)
        else:
            self.handle.update(content)


def _place(live: bool) -> _Widget | _Output:
    return _Widget() if live else _Output()


class StopButtons:
    """Two buttons for each run in training: save and stop, or save and go on."""

    def __init__(self, runs_shown: Sequence[Run]):
        import ipywidgets
        from IPython.display import display

        self.note = ipywidgets.HTML()
        self.by_run, self.save_by_run = {}, {}
        labels = curves.short_labels([run.name for run in runs_shown])
        for run, label in zip(runs_shown, labels, strict=True):
            if runs.read_status(run)["state"] == "running":
                # one run's name stands above the button already
                which = f" {curves.short(label, 16)}" if len(labels) > 1 else ""
                self.by_run[run.name] = _button(
                    f"Stop{which} · 停止",
                    "stop",
                    f"Saves {run.name} first; the same cell continues it later",
                    lambda pressed, run=run: self.stop(run, pressed),
                )
                self.save_by_run[run.name] = _button(
                    "Save · 保存",
                    "save",
                    "A checkpoint now; training goes on",
                    lambda pressed, run=run: self.save(run),
                )
        pairs = [button for name in self.by_run for button in (self.by_run[name], self.save_by_run[name])]
        self.box = ipywidgets.VBox([ipywidgets.HBox(pairs), self.note])
        if self.by_run:
            display(self.box)

    def save(self, run: Run) -> None:
        try:
            asked = runs.ask_to_save(run)
        except NewLLMError as error:
            self._say(str(error))
        else:
            self._say(f"{run.name}: saving after this step" if asked else f"{run.name} is not training now")

    def stop(self, run: Run, button) -> threading.Thread:
        """Ask in a thread, for saving takes a while and the view must go on."""
        button.disabled = True
        self._say(f"{run.name}: saving, then stopping …")
        thread = threading.Thread(target=self._stop, args=(run,), daemon=True)
        thread.start()
        return thread

    def _stop(self, run: Run) -> None:
        try:
            status = runs.stop(run)
        except NewLLMError as error:
            self._say(str(error))
        else:
            self._say(f"{run.name}: {status['state']}. {status['message']}")

    def _say(self, text: str) -> None:
        self.note.value = html.escape(text)

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


def _head(found: Look, run: Run) -> str:
    """Name, state, what is done, a bar, and the figures."""
    state = found.state if found.state != "running" or not found.facts else "training"
    colour = pictures.themed(_STATE_COLOURS.get(run_state(found), "#6b7280"))
    style = styles([found.name])[0]
    doing = html.escape(found.doing or ("" if found.state == "running" else found.message))
    fraction = 0.0 if found.fraction is None else found.fraction
    facts = [*found.facts, *(line.strip() for line in copy_line(run))]
    return (
        "<div style='margin:6px 0'><b "
        f"style='color:{pictures.themed(style.colour)}'>{html.escape(found.name)}</b> "
        f"<span style='color:{colour}'>● {html.escape(state)}</span> {doing}"
        f"<div style='height:8px;border-radius:4px;margin:4px 0;background:{pictures.themed(pictures.GRID)}'>"
        f"<div style='height:8px;border-radius:4px;width:{100 * fraction:.1f}%;"
        f"background:{pictures.themed(style.colour)}'></div></div>"
        f"<div>{html.escape(' · '.join(facts))}</div></div>"
    )


def sample_texts(found: list[tuple[str, list[dict]]], shown: int = 6) -> str:
    """The first, the newest, and some between, of each run's sample texts, as HTML."""
    parts = []
    grey = pictures.themed("#6b7280")
    for label, rows in found:
        picked = (
            rows
            if len(rows) <= shown
            else [rows[round(i * (len(rows) - 1) / (shown - 1))] for i in range(shown)]
        )
        lines = "".join(
            f"<tr><td style='color:{grey};white-space:nowrap;vertical-align:top'>step "
            f"{row['step']:,}</td><td "
            f"style='text-align:left'><span style='color:{grey}'>{html.escape(row['prompts'][0])}</span> "
            f"{html.escape(row['answers'][0])}</td></tr>"
            for row in picked
        )
        title = f"{html.escape(label)}: what it says · サンプル"
        parts.append(f"<details open><summary>{title}</summary><table>{lines}</table></details>")
    return "".join(parts)
