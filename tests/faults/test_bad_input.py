"""Bad input of every kind, through the command itself: one line that says what and how to mend it, exit 1 or
2, nothing lost.
"""

import errno
import json

import pytest

from newllm_lib.cli import main
from tests.helpers.bad_input import TINY, one_line
from tests.helpers.small_runs import write_text


def newllm(capsys, *words: str) -> tuple[int, str]:
    """Exit code and the lines on standard error."""
    code = main(list(words))
    return code, capsys.readouterr().err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


@pytest.fixture
def trained(folder, capsys):
    assert main(["train", "demo", "--data_dir", "text", "--output_dir", "run", *TINY]) == 0
    capsys.readouterr()
    return folder / "run"


def test_a_missing_data_folder(folder, capsys):
    code, err = newllm(capsys, "train", "demo", "--data_dir", "nowhere", *TINY)
    assert code in (1, 2)
    one_line(err, "nowhere")


def test_an_empty_data_folder(folder, capsys):
    (folder / "empty").mkdir()
    code, err = newllm(capsys, "train", "demo", "--data_dir", "empty", *TINY)
    assert code in (1, 2)
    one_line(err, "empty", "train")


def test_text_that_is_not_utf8(folder, capsys):
    (folder / "text" / "train.txt").write_bytes(b"good text\n\n" * 50 + b"\xff\xfe bad" + b"\n\nmore" * 20)
    code, err = newllm(capsys, "train", "demo", "--data_dir", "text", *TINY)
    assert code == 1
    one_line(err, "train.txt", "UTF-8")


def test_an_unknown_recipe_and_an_unknown_key(folder, capsys):
    code, err = newllm(capsys, "train", "dmo", *TINY)
    assert code == 2
    one_line(err, "did you mean demo?")
    (folder / "mine.yaml").write_text("data: demo\nepoch: 3\n")
    code, err = newllm(capsys, "train", "mine.yaml")
    assert code == 2
    one_line(err, "mine.yaml", "did you mean epochs?")


def test_too_little_text(folder, capsys):
    (folder / "text" / "train.txt").write_text("\n\n".join(f"only line {i}" for i in range(40)))
    code, err = newllm(capsys, "train", "demo", "--data_dir", "text", *TINY, "--batch_size", "512")
    assert code == 1
    one_line(err, "--batch_size")


@pytest.mark.parametrize("command", ["evaluate", "chat"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_checkpoint_that_is_not_whole(trained, capsys, command, damage):
    weights = trained / "best" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    code, err = newllm(capsys, command, "run")
    assert code == 1
    one_line(err, "model.safetensors")


def test_a_full_disk_while_saving_keeps_what_was_saved(folder, capsys, monkeypatch):
    from newllm_lib.runs import MARK, Run, is_finished
    from newllm_lib.training.checkpointing import Checkpoints

    save = Checkpoints._save_progress

    def full(self, folder, step):
        if step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, folder, step)

    monkeypatch.setattr(Checkpoints, "_save_progress", full)
    words = ["train", "demo", "--data_dir", "text", "--output_dir", "run", *TINY]
    code, err = newllm(capsys, *words)
    assert code == 1
    one_line(err, "disk is full", "checkpoint-4")
    run = Run(folder / "run")
    assert run.latest_checkpoint().name == "checkpoint-3"
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == [MARK]
    monkeypatch.setattr(Checkpoints, "_save_progress", save)  # space was made: the same command continues
    assert newllm(capsys, *words)[0] == 0
    steps = [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()]
    assert steps == sorted(steps) and is_finished(run)


def test_no_network(folder, capsys):
    code, err = newllm(capsys, "train", "wikitext", *TINY)
    assert code == 1
    one_line(err, "Salesforce/wikitext", "--data_dir")


def test_another_recipe_in_the_same_folder(trained, capsys):
    code, err = newllm(
        capsys,
        "train",
        "demo",
        "--data_dir",
        "text",
        "--output_dir",
        "run",
        *TINY,
        "--learning_rate",
        "0.001",
    )
    assert code == 2
    one_line(err, "learning_rate", "--output_dir")


def test_a_run_that_does_not_exist(folder, capsys):
    for words in (["evaluate", "nothing"], ["chat", "nothing"], ["compare", "nothing", "nobody"]):
        code, err = newllm(capsys, *words)
        assert code == 2
        one_line(err, "nothing")
