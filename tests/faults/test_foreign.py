"""What came from elsewhere and is not what it says: refused in one line by every command that would read it;
nothing runs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from newllm_lib.cli import main
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import MANIFEST, check_checkpoint_dir, safetensors_header
from newllm_lib.runs.mirror.archive import check_member
from tests.helpers.bad_input import TINY, one_line
from tests.helpers.small_runs import write_text


class Program:
    """A pickle that leaves a mark when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path(os.environ["MARK"]),))


def with_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Program()))


def with_a_pickle_beside(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(pickle.dumps(Program()))


def with_a_program(folder: Path) -> None:
    (folder / "modeling_new_llm.py").write_text("open(__import__('os').environ['MARK'], 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_new_llm.NewLLM"}
    (folder / "config.json").write_text(json.dumps(config))


def with_a_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/etc/passwd")


def with_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda n: weights[n].numel())
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda n: weights[n].numel())
    weights[name] = weights[name].to(torch.int32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_a_huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((10 * 2**30).to_bytes(8, "little") + b"{}")


def with_a_header_that_lies(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-8])


DAMAGE = {
    with_pickled_weights: "pickle",
    with_a_pickle_beside: "pickle",
    with_a_program: "program",
    with_a_link: "link",
    with_another_shape: "has the shape",
    with_integers: "holds I32",
    with_a_huge_header: "header of 10,737,418,240 bytes",
    with_a_header_that_lies: "not hold the weights",
}
damaged = pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run stopped on its way, so that it can be continued."""
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder)
    words = ["train", "demo", "--data_dir", str(folder / "text"), "--output_dir", str(folder / "run"), *TINY]
    assert main([*words, "--max_steps", "6"]) == 0
    return folder / "run", words


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], tmp_path / "run")
    yield tmp_path / "run"
    assert not (tmp_path / "ran").exists()


def seal(folder: Path) -> None:
    """As whoever made it would: the list of files is right."""
    files = {p.name: p.lstat().st_size for p in folder.iterdir() if p.name != MANIFEST and not p.is_symlink()}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


@damaged
def test_chat_refuses_it(run, capsys, damage):
    damage(run / "best")
    seal(run / "best")
    assert main(["chat", "run"]) == 1
    one_line(capsys.readouterr().err, DAMAGE[damage])


def test_more_layers_than_weights_are_not_built(run, capsys):
    config = json.loads((run / "best" / "config.json").read_text())
    (run / "best" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**7}))
    seal(run / "best")
    assert main(["chat", "run"]) == 1
    one_line(capsys.readouterr().err, "names 10,000,000 layers")


@damaged
def test_training_does_not_continue_from_it(run, trained, capsys, damage):
    checkpoint = max(run.glob("checkpoint-*"))
    damage(checkpoint)
    seal(checkpoint)
    (run / "status.json").unlink()
    words = [*trained[1], "--max_steps", "6"]
    words[words.index("--output_dir") + 1] = "run"
    assert main([*words, "--resume", checkpoint.name]) == 1
    one_line(capsys.readouterr().err, DAMAGE[damage])


@pytest.mark.parametrize(
    "damage", [with_a_pickle_beside, with_a_link, with_a_huge_header], ids=lambda d: d.__name__
)
def test_it_is_not_restored_from_a_drive(run, tmp_path, capsys, damage):
    damage(run / "best")
    seal(run / "best")
    assert main(["runs", "restore", "run", "--from", str(tmp_path), "--into", str(tmp_path / "here")]) == 1
    one_line(capsys.readouterr().err, DAMAGE[damage])
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../../outside.json", "outside its folder"),
        ("/etc/newllm", "outside its folder"),
        ("run/best/model.bin", "pickle"),
        ("run\\..\\..\\x.json", "outside its folder"),
        ("run/start.py", "program"),
    ],
)
def test_an_archive_that_climbs_out_or_holds_a_pickle_is_refused(tmp_path, capsys, name, says):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        archive.writestr("run/recipe.yaml", "recipe: demo\n")
        archive.writestr(name, "x")
    assert main(["runs", "restore", "run", "--from", str(tmp_path), "--into", str(tmp_path / "here")]) == 1
    one_line(capsys.readouterr().err, says)
    assert not (tmp_path / "here").exists() and not list(tmp_path.parent.glob("outside*"))


def test_a_link_in_an_archive_is_refused(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        link = zipfile.ZipInfo("run/train.log")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert (
        main(["runs", "restore", "run.zip", "--from", str(tmp_path), "--into", str(tmp_path / "here")]) == 1
    )
    one_line(capsys.readouterr().err, "is a link")


def test_a_list_of_files_that_climbs_out_lists_nothing(run, capsys):
    (run / "best" / MANIFEST).write_text(json.dumps({"files": {"../../../etc/passwd": 1}}))
    assert main(["chat", "run"]) == 1
    one_line(capsys.readouterr().err, "best is not whole")


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "C:/x", "/x"])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(NewLLMError):
        check_member(name)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}', b'{"a": 3}']
)
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(NewLLMError, match="refused"):
        safetensors_header(path)


def test_links_of_a_hubs_cache_pass_and_no_others(tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    (tmp_path / "models--x" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs" / "1234").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    check_checkpoint_dir(snapshot)
    (snapshot / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(NewLLMError, match="link to /etc/passwd"):
        check_checkpoint_dir(snapshot)


def test_our_own_checkpoints_pass(run):
    for folder in (run / "best", run / "last", *run.glob("checkpoint-*")):
        check_checkpoint_dir(folder)
        assert (
            safetensors_header(folder / "model.safetensors").keys()
            == load_file(folder / "model.safetensors").keys()
        )
