"""The live view on growing, finished and several runs: as text, as a picture, and closed without stopping
anything.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time

import pytest

from newllm_lib import runs
from newllm_lib.colab import buttons, curves, live, live_widgets, look, pictures
from newllm_lib.colab.gpu_monitor import GpuMonitor
from newllm_lib.colab.history import History
from newllm_lib.evaluation.palette import styles
from newllm_lib.runs import Run, write_status
from tests.helpers.fake_run import append, finished, rows

PNG = b"\x89PNG\r\n"
CHILD = """
import time
from tests.helpers.fake_run import append, rows
from newllm_lib.runs import Run, RunLock, write_status
run = Run({path!r})
with RunLock(run):
    write_status(run, state="running", total_steps=300, message="preparing")
    for row in rows():
        append(run, [row]); time.sleep(0.03)
    write_status(run, state="done", step=300, message="finished")
"""


def start(run: Run, code: str = CHILD) -> int:
    return runs.start_background([sys.executable, "-c", code.format(path=str(run.path))], run)


def test_a_growing_run_is_followed_to_its_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(live, "TEXT_EVERY", 0.0)
    run = Run(tmp_path / "new_llm_fake")
    start(run)
    statuses = live.watch(run, every=0.05)
    shown = capsys.readouterr().out
    assert statuses[0]["state"] == "done"
    assert "new_llm_fake: running" in shown and "new_llm_fake: done | step 300 of 300 (100 %)" in shown
    assert "40k tokens/s" in shown and "✓ (epoch 3)" in shown
    assert (run.path / "live.png").read_bytes().startswith(PNG)


def test_a_finished_run_and_several_are_shown_at_once(tmp_path, capsys):
    one, other = finished(tmp_path / "new_llm_demo"), finished(tmp_path / "tinygpt2_demo", level=3.3)
    picture = tmp_path / "both.png"
    statuses = live.watch(one, str(other.path), baselines={"bigram": 2.0}, picture=picture)
    assert [s["state"] for s in statuses] == ["done", "done"] and picture.read_bytes().startswith(PNG)
    assert capsys.readouterr().out.count("best ") == 2


def test_interrupting_closes_the_view_and_training_goes_on(tmp_path, capsys, monkeypatch):
    run = Run(tmp_path / "run")
    start(run)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(buttons, "wait", interrupted)
    assert live.watch(run)[0]["state"] == "running"
    assert "goes on in the background" in capsys.readouterr().out
    monkeypatch.undo()
    assert live.watch(run, every=0.05)[0]["state"] == "done"


def test_a_run_that_died_says_its_last_words(tmp_path, capsys):
    run = Run(tmp_path / "run")
    append(run, rows()[:2])
    run.log.write_text("step 40\nout of something\n")
    write_status(run, state="running", total_steps=300)  # and no process holds its lock
    assert live.watch(run)[0]["state"] == "dead"
    assert "ended without a word" in (shown := capsys.readouterr().out) and "out of something" in shown


def test_before_the_first_step_the_line_tells_what_is_prepared(tmp_path):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.log.write_text("  packing 45% | 1.2M tokens | 8 s left\n")
    view = look.View([run])
    view.statuses[0]["state"] = "running"
    assert view.lines() == ["run: running | packing 45% | 1.2M tokens | 8 s left"]
    assert view.looks()[0].fraction == 0.45  # of the packing: the bar moves from the first second on


def running(run: Run, log: str = "", **status) -> look.View:
    """A view of a run that (it is told) trains now."""
    run.path.mkdir(parents=True, exist_ok=True)
    run.log.write_text(log)
    view = look.View([run])
    view.update()
    view.statuses[0] |= {"state": "running", "total_steps": 300, **status}
    return view


def test_an_evaluation_is_said_with_the_logs_percentage(tmp_path):
    run = finished(tmp_path / "run")
    look = running(run, "  evaluating 61% | 120k tokens | 3 s left\n").looks()[0]
    assert look.doing == "evaluating 61% | 120k tokens | 3 s left" and look.fraction == 1.0
    append(run, [{"step": 320, "epoch": 3.2, "loss": 1.0, "time": 1e9 + 50}])
    assert running(run, "  Training...  5% | step 320/600\n").looks()[0].doing == ""


def test_a_run_that_continues_says_from_where_and_shows_no_old_figures(tmp_path):
    run = finished(tmp_path / "run")
    look = running(run, "  packing 12%\n", started=2e9).looks()[0]
    assert look.doing == "continuing from step 300: packing 12%"
    assert look.facts[0].startswith("step 300 of 300") and not any("tokens/s" in fact for fact in look.facts)
    assert not any("left" in fact for fact in look.facts)
    assert GpuMonitor().describe(None) == "" or "0.0 GiB" not in GpuMonitor().describe(None)


def test_without_figures_there_is_a_picture_while_it_trains_and_none_of_what_failed(tmp_path):
    view = running(Run(tmp_path / "run"))
    loss, bits = view.figure().axes
    assert view.has_picture and view.png().startswith(PNG)
    assert loss.get_xlim() == bits.get_xlim() == (0, 300)  # the whole run, from the first second on
    assert bits.get_ylim()[1] > 8  # what knowing nothing scores
    assert not loss.get_yticks().size and loss.get_xticks().size  # the vocabulary is not known yet
    view.statuses[0]["total_steps"] = None
    assert not view.figure().axes[0].get_xticks().size  # nor is the length: no scale rather than 0 to 1
    view.statuses[0]["state"] = "failed"
    assert not view.has_picture


def test_a_thread_loads_what_the_first_picture_needs(tmp_path, monkeypatch):
    """Then the first picture takes a few tenths of a second of a processor."""
    monkeypatch.setattr(curves, "shell", lambda: True)
    curves.warm_up()
    for thread in threading.enumerate():
        if thread.name == "warm-up":
            thread.join()
    assert {"matplotlib", "ipywidgets"} <= set(sys.modules)
    view, began = running(Run(tmp_path / "run")), time.thread_time()
    page = pictures.svg(view.figure())
    assert "after the first steps" in page and time.thread_time() - began < 1.0


def history_of(run: Run, name: str) -> History:
    history = History(run.metrics_path, name)
    history.update()
    return history


def test_the_picture_holds_each_run_the_best_and_the_baseline(tmp_path):
    histories = [
        history_of(finished(tmp_path / name, level=level), name)
        for name, level in (("new_llm", 3.0), ("tinygpt2", 3.3))
    ]
    loss, bits = curves.draw(histories, {"bigram": 2.0}).axes
    assert {line.get_color() for line in loss.get_lines()} == {
        style.colour for style in styles(["new_llm", "tinygpt2"])
    }
    assert {line.get_marker() for line in bits.get_lines()} >= {"o", "s"}  # for who sees no colours
    assert [t.get_text() for t in loss.get_legend().get_texts()] == [
        "new_llm training",
        "new_llm validation",
        "tinygpt2 training",
        "tinygpt2 validation",
    ]
    alone = curves.draw(histories[:1]).axes[0].get_legend().get_texts()
    assert [t.get_text() for t in alone] == ["training", "validation"]  # its name stands above the picture
    assert bits.get_xlabel() == "optimizer step" and bits.get_xlim() == (0, 300)
    notes = {text.get_text(): text for text in bits.texts}
    assert sum(note.startswith("✓ ") for note in notes) == 2 and "bigram 2.000" in notes
    assert f"✓ {histories[0].best['eval_bits_per_byte']:.3f}" in notes
    assert all(note.xyann[0] > 1 for note in notes.values())  # beside the curves, not on them
    heights = sorted(note.xyann[1] for note in notes.values())
    low, high = bits.get_ylim()
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 0.07 * (
        high - low
    )  # and not on each other
    histories[0].label = "new_llm_ultrachat_layers4_hidden512_context512_100k"
    long = curves.draw(histories).axes[0].get_legend().get_texts()[0].get_text()
    assert long.startswith("new_llm_ultr") and long.endswith("100k training") and len(long) < 40


def test_axes_never_show_less_than_a_difference_is_worth(tmp_path):
    run = Run(tmp_path / "run")
    append(run, [{"step": n, "loss": 3.0 + n * 1e-5, "time": 1e9 + n} for n in range(1, 5)])
    append(run, [{"step": n, "eval_loss": 3.0, "eval_bits_per_byte": 2.0 + n * 1e-5} for n in range(1, 5)])
    loss, bits = curves.draw([history_of(run, "run")]).axes
    assert loss.get_ylim()[1] - loss.get_ylim()[0] >= curves.LEAST_LOSS
    assert bits.get_ylim()[1] - bits.get_ylim()[0] >= curves.LEAST_BITS


def test_one_logged_step_is_seen(tmp_path):
    run = Run(tmp_path / "run")
    append(run, [{"step": 1, "loss": 7.6, "time": 1e9}])
    loss = curves.draw([history_of(run, "new_llm")], total_steps=100, guessing=7.62).axes[0]
    assert any(line.get_marker() == "o" for line in loss.get_lines())
    assert loss.get_ylim()[0] <= 0 and "knows nothing" in [text.get_text() for text in loss.texts]


def test_a_picture_follows_the_theme_and_the_width(tmp_path):
    drawn = pictures.svg(curves.draw([history_of(finished(tmp_path / "run"), "new_llm")]), 'a "run"')
    assert 'aria-label="a &quot;run&quot;"' in drawn and 'width="' not in drawn[: drawn.index(">")]
    assert "var(--nl-0072b2,#0072b2)" in drawn and "#0072b2;" not in drawn.replace(
        "var(--nl-0072b2,#0072b2)", ""
    )
    page = pictures.page(drawn)
    assert (
        "prefers-color-scheme:dark" in page and "html[theme=dark]" in page and "data-jp-theme-light" in page
    )


def test_a_name_of_42_characters_breaks_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    name = "new_llm_ultrachat_layers4_hidden512_100k_x"
    assert len(name) == 42
    monkeypatch.setattr(runs, "read_status", lambda run: {"state": "running"})
    panel = live_widgets.StopButtons([Run(tmp_path / name), Run(tmp_path / f"{name}_2")])
    assert all(len(button.description) < 30 for button in panel.by_run.values())
    assert all(name in button.tooltip for button in panel.by_run.values())


def test_colours_belong_to_models_everywhere():
    for names in (["new_llm_demo", "tinygpt2_demo"], ["new_llm", "tiny_gpt2"], ["New-LLM", "TinyGPT2"]):
        assert [style.colour for style in styles(names)] == ["#0072B2", "#D55E00"]
    assert styles(["tinygpt2_demo"])[0] == styles(["new_llm", "tinygpt2"])[1]
    assert len(set(styles(["new_llm_demo", "new_llm_demo_2", "mine", "phase7_small"]))) == 4


def test_smoothing_keeps_the_level():
    assert curves.smooth([]) == [] and curves.smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    noisy = [1.0, 3.0] * 100
    assert max(curves.smooth(noisy)[50:]) - min(curves.smooth(noisy)[50:]) < 0.5


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["new_llm_demo", "tinygpt2_demo"], ["new_llm", "tinygpt2"]),
        (["new_llm_demo"], ["new_llm_demo"]),
        (["a_demo", "a_demo"], ["a_demo", "a_demo"]),
        (["new_llm_demo", "new_llm_demo_2"], ["new_llm_demo", "new_llm_demo_2"]),
    ],
)
def test_labels_drop_what_all_share(names, short):
    assert curves.short_labels(names) == short


def test_the_stop_button_stops_its_run_only(tmp_path, monkeypatch):
    """The button asks `runs.stop` in a thread, is disabled meanwhile, and tells the outcome."""
    pytest.importorskip("ipywidgets")
    asked, release = [], threading.Event()

    def stop(run):
        asked.append(run.name)
        release.wait(5)
        return {"state": "interrupted", "message": "saved"}

    monkeypatch.setattr(runs, "stop", stop)
    monkeypatch.setattr(runs, "read_status", lambda run: {"state": "running"})
    panel = live_widgets.StopButtons([Run(tmp_path / "one"), Run(tmp_path / "two")])
    button = panel.by_run["two"]
    button.click()
    assert button.disabled and not panel.by_run["one"].disabled and "saving" in panel.note.value
    release.set()
    for thread in [t for t in threading.enumerate() if t.name.startswith("Thread-")]:
        thread.join(5)
    assert asked == ["two"] and panel.note.value == "two: interrupted. saved"
    panel.close()


def test_what_a_run_says_is_shown_over_time(tmp_path, capsys):
    run = finished(tmp_path / "run")
    rows = [
        {"step": n, "epoch": n, "prompts": ["Hello <b>", "x"], "answers": [f"I am {n}", "y"]}
        for n in range(50)
    ]
    run.samples_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    live.watch(run)
    assert "run: Hello <b> … I am 49" in capsys.readouterr().out
    assert look.View([Run(tmp_path / "other")]).samples() == []
    shown = live_widgets.sample_texts(look.View([run]).samples())
    assert (
        shown.count("<tr>") == 6 and "Hello &lt;b&gt;" in shown and "I am 0<" in shown and "I am 49<" in shown
    )


def test_a_running_run_shows_how_busy_its_machine_is_and_where_its_copy_stands(tmp_path, monkeypatch):
    run = finished(tmp_path / "run")
    view = look.View([run])
    view.statuses[0] |= {"state": "running", "pid": os.getpid()}
    assert re.search(r"\d\.\d GiB of host memory|GPU \d+ %", view.lines()[0])
    status = {"folder": "/drive", "step": 200, "message": "/drive is full"}
    monkeypatch.setattr(runs, "mirror_status", lambda run: status)
    assert view.lines()[1] == "  copy in /drive: step 200 | /drive is full"


def test_the_use_of_a_gpu_is_read_from_the_driver(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '97, 5222, 15053'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert GpuMonitor().describe(None) == "GPU 97 %, 5.1 of 14.7 GiB"
    program.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert GpuMonitor().describe(None) == ""


def test_the_save_button_asks_its_run(tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    asked = []
    monkeypatch.setattr(runs, "ask_to_save", lambda run: asked.append(run.name) or len(asked) < 2)
    monkeypatch.setattr(runs, "read_status", lambda run: {"state": "running"})
    panel = live_widgets.StopButtons([Run(tmp_path / "one")])
    panel.save_by_run["one"].click()
    assert asked == ["one"] and panel.note.value == "one: saving after this step"
    panel.save_by_run["one"].click()
    assert panel.note.value == "one is not training now"
