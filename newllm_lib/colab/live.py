"""The live view: what runs are doing, drawn again and again until they end.

In a notebook a thread draws it, so the cell ends, the kernel is free, and the cell can be run again to look
again; elsewhere it is lines of text and a PNG file, until the runs end. It only reads a run's folder:
training neither knows nor waits for it, and goes on when the view is closed."""

from __future__ import annotations

import html
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons, curves, pictures
from newllm_lib.colab.environment import shell, widgets_render
from newllm_lib.colab.gpu_monitor import GpuMonitor
from newllm_lib.colab.history import History, samples
from newllm_lib.console import count, duration, say
from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation.palette import styles
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_bytes
from newllm_lib.training.dpo.curves import preference_figure
from newllm_lib.training.report import FILE as REPORT

TEXT_EVERY = 10.0  # seconds between two lines where there is only text
REDRAW_EVERY = 4.0  # seconds between two pictures
_SHOWN_STATES = {"new": "not started", "dead": "ended without a word"}
_STATE_COLOURS = {"running": "#009e73", "done": "#0072b2", "failed": "#d55e00", "dead": "#d55e00"}
_COUNTED = 10e6  # tokens of training text up to which the tables are counted while a run trains
_TOKENS = re.compile(r"  data: .*?([\d.]+)([kMB]?) tokens to train on .*?validation ([\d.]+)([kMB]?)")
_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}


@dataclass
class Look:
    """What is known of one run at this moment.

    Attributes:
        doing: what its process does now, in the log's words.
        fraction: of that or of the whole run, 0 to 1; None where it is not known.
        facts: step, loss, speed, time left, best evaluation.
    """

    name: str
    state: str
    doing: str
    fraction: float | None
    facts: list[str]
    message: str = ""


class View:
    """What there is to show of some runs: a look at each, and a picture of all."""

    def __init__(self, runs_shown: Sequence[Run], baselines: dict[str, float] | None = None):
        self.runs = list(runs_shown)
        self.baselines = dict(baselines or {})
        self.counted = baselines is not None
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
        return curves.draw(self.histories, self.baselines, max(totals) or None, _guessing(self.runs[0]))

    def png(self) -> bytes:
        return pictures.png(self.figure())


def short_labels(names: list[str]) -> list[str]:
    """Names without the ending that all share: `new_llm`, `tinygpt2` for two runs on the same data."""
    words = [name.split("_") for name in names]
    while len(set(names)) > 1 and len({w[-1] for w in words}) == 1 and min(map(len, words)) > 1:
        words = [w[:-1] for w in words]
    return ["_".join(w) for w in words]


def look(run: Run, history: History, status: dict, use: GpuMonitor | None = None) -> Look:
    """What is known of a run: state, what it does, how far it is, figures."""
    state, total = status["state"], status["total_steps"]
    step = max(history.step, status["step"] or 0)
    found = Look(run.name, _SHOWN_STATES.get(state, state), "", None, [])
    if state == "running":
        found.doing, found.fraction = _doing(run, history, status, step, total)
        if (busy := use.describe(status["pid"])) if use else "":
            found.facts.append(busy)
    elif state in ("failed", "dead", "interrupted"):
        found.message = status["message"]
    if total and step and found.fraction is None:
        found.fraction = min(1.0, step / total)
    found.facts[:0] = _figures(run, history, status, step, total)
    return found


def _figures(run: Run, history: History, status: dict, step: int, total: int | None) -> list[str]:
    parts = []
    if step:
        parts.append(f"step {step:,}" + (f" of {total:,} ({100 * step / total:.0f} %)" if total else ""))
    trains = status["state"] == "running"
    if history.step and not (trains and not _is_fresh(history, status)):
        _, losses = history.series("loss")
        parts += [f"loss {losses[-1]:.3f}"] if losses else []
        if speed := history.tokens_per_second():
            parts.append(f"{count(speed)} tokens/s")
        if trains and (left := seconds_left(run, history, total)) is not None:
            parts.append(f"{duration(left)} left")
    if best := history.best:
        score = (
            f"{best['eval_bits_per_byte']:.3f} bits per byte"
            if "eval_bits_per_byte" in best
            else (f"held-out loss {best['eval_loss']:.3f}, accuracy {100 * best['eval_accuracy']:.1f} %")
        )
        parts.append(f"best {score} ✓ (epoch {best.get('epoch', 0):.3g})")
    return parts


def _is_fresh(history: History, status: dict) -> bool:
    """Whether something was logged since the run's process began (else what is there is of an earlier
    life)."""
    newest = history.steps.get(max(history.steps, default=0), {}).get("time")
    return newest is None or status["started"] is None or newest >= status["started"]


def _doing(
    run: Run, history: History, status: dict, step: int, total: int | None
) -> tuple[str, float | None]:
    """What a run in training does now, and how much of that is done (None: of the whole run, then)."""
    line = runs.last_line(run) or status["message"] or "starting"
    percent = re.match(r"(?:.*? )?(\d+)%", line)
    if line.startswith("evaluating"):
        return line, None
    if history.steps and _is_fresh(history, status):
        return ("", None) if not status["message"].startswith("no sign") else (status["message"], None)
    if step and not _is_fresh(history, status):
        return f"continuing from step {step:,}: {line}", None
    return line, int(percent[1]) / 100 if percent and "Training" not in line else None


def seconds_left(run: Run, history: History, total: int | None) -> float | None:
    """Time to the run's end from now, evaluations and saves included."""
    recipe = _recipe(run)
    guess = 0.0
    if speed := history.tokens_per_second():
        # forward alone is a third of a step; the sample answers come on top
        guess = _said_of_data(run)[1] / (3 * speed) + 2
    left = history.seconds_left(total, recipe.evals_per_epoch if recipe else 0, guess)
    if left is None:
        return None
    newest = max(row.get("time") or 0.0 for row in [*history.steps.values(), *history.evaluations.values()])
    return max(1.0, left - max(0.0, min(left, time.time() - newest))) if left else 0.0


def _recipe(run: Run) -> Recipe | None:
    try:
        return Recipe.from_yaml(run.recipe_path)
    except (OSError, NewLLMError):  # not written yet
        return None


def _said_of_data(run: Run) -> tuple[float, float]:
    """Tokens of the training and the validation text, as the log says them; 0 where it does not."""
    try:
        with open(run.log, encoding="utf-8", errors="replace") as log:
            found = _TOKENS.search(log.read(20_000))
    except OSError:
        return 0.0, 0.0
    return (float(found[1]) * _SIZES[found[2]], float(found[3]) * _SIZES[found[4]]) if found else (0.0, 0.0)


def _guessing(run: Run) -> float | None:
    """Nats a token of a model that knows nothing of the vocabulary's frequencies."""
    recipe = _recipe(run)
    return math.log(recipe.vocab_size) if recipe and recipe.task == "train" and not recipe.from_run else None


def counted(run: Run) -> dict[str, float]:
    """Validation bits per byte of the unigram and bigram tables of a run's training text; {} where that would
    take long, or the text is not there."""
    recipe, tokens = _recipe(run), _said_of_data(run)[0]
    if recipe is None or recipe.task != "train" or not 0 < tokens <= _COUNTED:
        return {}
    from transformers import AutoTokenizer

    from newllm_lib.evaluation.baselines import bigram, unigram
    from newllm_lib.evaluation.evaluate_run import packed_split

    try:
        tokenizer = AutoTokenizer.from_pretrained(run.best)
        train, held_out = (packed_split(recipe, tokenizer, split) for split in ("train", "validation"))
    except (NewLLMError, OSError):  # being replaced, or not read yet: lines that help, but not at any price
        return {}
    return {
        "unigram": unigram(train, held_out, tokenizer)["bits_per_byte"],
        "bigram": bigram(train, held_out, tokenizer)["bits_per_byte"],
    }


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
            self.said.put(pictures.page(_samples(self.view.samples())))
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
        labels = short_labels([run.name for run in runs_shown])
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


def run_state(found: Look) -> str:
    """The state's own word, from the one shown."""
    return next((state for state, shown in _SHOWN_STATES.items() if shown == found.state), found.state)


def _samples(found: list[tuple[str, list[dict]]], shown: int = 6) -> str:
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
