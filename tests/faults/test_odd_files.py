"""What a restored run, a recipe or an archive may say that is odd: one line, or as if it were not there."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile

import pytest

from newllm_lib.cli import main
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.compare.compare import validation_curve
from newllm_lib.hub_models import licence_of
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, list_runs, mirror_status, read_status, restore
from newllm_lib.runs.ownership import MANIFEST, MARK, RUN_FILES, RUN_PART, read_mark
from newllm_lib.training.curves import plot_curves
from tests.helpers.bad_input import ODD, TINY, one_line
from tests.helpers.fake_run import finished, rows
from tests.helpers.small_runs import write_text

RECORDS = [f"{name}.json" for name in ("status", "mirror", "timing", ".newllm")]
RECORDS += ["metrics.jsonl", "samples.jsonl", "run.lock", "train.log"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder)
    words = ["--data_dir", str(folder / "text"), "--output_dir", str(folder / "run"), *TINY]
    assert main(["train", "demo", *words, "--max_steps", "3", "--sample_tokens", "4"]) == 0
    return folder / "run"


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_records_of_a_run_hinder_no_command_and_no_other_run(here, capsys, text):
    finished(here / "checkpoints" / "good")
    odd = finished(here / "checkpoints" / "odd")
    names = (
        "status.json",
        "mirror.json",
        "metrics.jsonl",
        "run.lock",
        ".newllm.json",
        "samples.jsonl",
        "train.log",
    )
    for name in names:
        (odd.path / name).write_text(text + "\n", errors="surrogateescape")
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "good" in shown and "odd" in shown and "\x1b" not in shown
    for words in (["status", "odd"], ["logs", "odd"], ["stop", "odd"]):
        assert main(["runs", *words]) in (0, 2)
        assert "report it" not in capsys.readouterr().err
    assert [run.name for run in list_runs()] == ["good", "odd"]
    assert read_status(odd)["state"] in ("new", "dead", "done")
    assert all(isinstance(row["step"], int) for row in odd.metrics()) and not validation_curve(odd)
    plot_curves(odd)
    mirror_status(odd)


def test_a_run_that_may_not_be_read_hinders_no_other(here, capsys, monkeypatch):
    finished(here / "checkpoints" / "good")
    finished(here / "checkpoints" / "odd")
    shutil.rmtree(here / "checkpoints" / "odd" / "status.json", ignore_errors=True)
    (here / "checkpoints" / "odd" / "status.json").unlink(missing_ok=True)
    (here / "checkpoints" / "odd" / "status.json").mkdir()
    assert main(["runs"]) == 0 and "good" in capsys.readouterr().out


def test_rows_that_are_none_are_left_out(here):
    run = Run(here / "run")
    run.path.mkdir()
    good = rows()[:2]
    run.metrics_path.write_text(
        "".join(json.dumps(row) + "\n" for row in (good[0], [1], {"step": "x"}, good[1])) + "{"
    )
    assert list(run.metrics()) == good


def bomb(path) -> None:
    lines = ["run_name: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{key}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]"
        for i, key in enumerate(("model", "data", "seed") * 5)
    ]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bomb, r"a reference \(\*a0\)"),
        (lambda path: path.write_text("# x\n" * 500_000), "more than a recipe's length"),
        (lambda path: path.write_text("model: " + "[" * 5000), "nested too deeply|not readable"),
        (lambda path: path.write_text("!!python/object/apply:os.system ['true']"), "not readable as YAML"),
        (lambda path: path.write_bytes(b"model: \xff\xfe"), "not readable as YAML"),
        (lambda path: path.write_text('seed: !!int ""'), "not readable as YAML"),
        (lambda path: path.write_text("seed: !!timestamp x"), "not readable as YAML"),
        (lambda path: path.write_text("seed: " + "1:" * 200 + "1.5"), "not readable as YAML"),
        (lambda path: path.write_text("data: demo\nwhen:\n  3: {seed: 1}"), "Unknown condition '3'"),
        (lambda path: path.write_text("word_memory: 'a: b: c'"), "gone since"),
        (lambda path: path.write_text("streaming: [1]"), "streaming must be"),
        (lambda path: path.write_text("dropout: " + "9" * 400), "finite number"),
    ],
    ids=[
        "bomb",
        "long",
        "deep",
        "program",
        "bytes",
        "int",
        "date",
        "float",
        "condition",
        "gone",
        "list",
        "huge",
    ],
)
def test_a_recipe_that_is_none(here, make, says):
    make(here / "mine.yaml")
    with pytest.raises(UsageError, match=says) as error:
        load_recipe("mine.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["output_dir", "mirror_dir"])
@pytest.mark.parametrize("section", [False, True])
def test_a_restored_recipe_that_names_other_places_is_asked_for_them_again(here, key, section):
    run = here / "run"
    run.mkdir()
    line = f"when:\n  cpu:\n    {key}: /elsewhere\n" if section else f"{key}: /elsewhere\n"
    (run / "recipe.yaml").write_text("version: 0.2.0\nrecipe: demo\n" * (not section) + line)
    for name in ("run", "run/recipe.yaml"):
        with pytest.raises(UsageError, match=f"names {key} /elsewhere, .* --{key} /elsewhere"):
            load_recipe(name)
        assert getattr(load_recipe(name, {key: "mine"}), key).endswith("mine")


def test_a_record_that_names_its_own_places_is_read(here):
    run = here / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(f"version: 0.2.0\nrecipe: demo\noutput_dir: run\nmirror_dir: {here}\n")
    (run / "mirror.json").write_text(json.dumps({"folder": str(here)}))
    assert load_recipe("run").output_dir == "run"


def test_an_odd_run_hinders_no_other(here, capsys):
    """Neither one that is trained beside it, nor one that is looked for by its recipe."""
    write_text(here)
    words = ["train", "demo", "--data_dir", "text", *TINY, "--max_steps", "3", "--epochs", "1"]
    assert main([*words, "--run_name", "good"]) == 0
    shutil.copytree("checkpoints/good", "checkpoints/odd")
    shutil.copytree("checkpoints/good", "checkpoints/older")
    for text in ("model: [", "- 1", "data: &a [*a]"):
        for name in ("odd", "older"):
            (here / "checkpoints" / name / "recipe.yaml").write_text(text)
        assert main([*words, "--run_name", "another", "--seed", str(len(text))]) in (0, 2)
        shutil.rmtree(here / "checkpoints" / "another")
        assert main(["runs"]) == 0
        capsys.readouterr()
        assert main(["evaluate", "demo"]) == 0 and "report it" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_rows_of_a_run_that_is_continued_end_it_not(here, trained, text):
    shutil.copytree(trained, here / "run")
    for name in ("metrics.jsonl", "samples.jsonl", "timing.json", "report.json", "data_report.json"):
        with open(here / "run" / name, "a", errors="surrogateescape") as file:
            file.write(text + "\n")
    words = ["--data_dir", str(trained.parent / "text"), "--output_dir", "run", "--sample_tokens", "4"]
    assert main(["train", "demo", *words, *TINY, "--max_steps", "5"]) in (0, 2)


@pytest.mark.parametrize("text", ["null", "[]", "[" * 100_000], ids=["null", "list", "deep"])
def test_a_model_with_an_odd_configuration_is_not_exported(here, trained, capsys, text):
    shutil.copytree(trained, here / "run")
    (here / "run" / "best" / "config.json").write_text(text)
    sizes = {p.name: p.stat().st_size for p in (here / "run" / "best").iterdir() if p.name != MANIFEST}
    (here / "run" / "best" / MANIFEST).write_text(json.dumps({"files": sizes}))
    assert main(["export", "run", "--output_dir", "made"]) == 1
    one_line(capsys.readouterr().err, "config.json is damaged")
    assert not (here / "made").exists()


def test_all_that_a_run_writes_is_known_for_ours(trained):
    """Else it would take the place of a user's file of that name, and not be in a copy."""
    names = {path.name for path in trained.iterdir()} - {MARK}
    assert "data_report.json" in names and all(n in RUN_FILES or RUN_PART.fullmatch(n) for n in names)


def test_a_card_that_is_none_names_no_licence(here):
    nested = "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(40))
    for front in (f"a0: &a0 x\n{nested}\nlicense: *a40", "license: [", "license: 2020-99-99", "- 1", "x"):
        (here / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
        assert licence_of(here) is None
    (here / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence_of(here) == "mit"


def zipped(here, **files: str) -> None:
    with zipfile.ZipFile(here / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"recipe.yaml": "recipe: demo\n", **files}.items():
            archive.writestr(f"run/{name}", text)


def claims(here, size: int) -> None:
    """The archive's directory says that its last file has so many bytes."""
    data = bytearray((here / "run.zip").read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", size)
    (here / "run.zip").write_bytes(data)


def encrypted(here) -> None:
    zipped(here)
    data = bytearray((here / "run.zip").read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(sign) + offset] |= 1
    (here / "run.zip").write_bytes(data)


def damaged(here) -> None:
    zipped(here, **{"train.log": "words " * 5000})
    data = bytearray((here / "run.zip").read_bytes())
    middle = data.find(b"train.log") + 20
    data[middle : middle + 10] = b"\xff" * 10
    (here / "run.zip").write_bytes(data)


def larger_than_said(here) -> None:
    zipped(here, **{"train.log": "words " * 5000})
    claims(here, 10)


def larger_than_the_disk(here) -> None:
    zipped(here, **{"train.log": "words"})
    claims(here, 2**32 - 2)


def of_many_files(here) -> None:
    zipped(here, **{f"{i}.json": "" for i in range(10_001)})


def with_a_file_for_a_folder(here) -> None:
    zipped(here, **{"best": "x", "best/config.json": "{}"})


def with_a_long_name(here) -> None:
    zipped(here, **{"x" * 300: "x"})


ARCHIVES = {
    encrypted: "without a password",
    damaged: "no readable zip",
    larger_than_said: "no readable zip",
    larger_than_the_disk: "MiB free",
    of_many_files: "10,002 files",
    with_a_file_for_a_folder: "file stands where a folder is needed",
    with_a_long_name: "too long",
}


@pytest.mark.parametrize("make", ARCHIVES, ids=lambda make: make.__name__)
def test_an_archive_that_is_odd(here, capsys, monkeypatch, make):
    make(here)
    free = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free._replace(free=3 * 2**30))
    assert main(["runs", "restore", "run.zip", "--from", ".", "--into", "there"]) == 1
    one_line(capsys.readouterr().err, ARCHIVES[make])
    assert not (here / "there" / "run").exists()


def test_the_mark_of_an_archive_is_not_brought(here):
    """A folder that says it is an export would be replaced by the next one."""
    zipped(here, **{".newllm.json": json.dumps({"what": "export", "run": "x", "files": ["recipe.yaml"]})})
    assert read_mark(restore("run", here, here / "there").path)["what"] == "run"


def test_a_good_archive_is_unpacked(here):
    zipped(here, **{"train.log": "words"})
    assert restore("run", here, here / "there").log.read_text() == "words"
