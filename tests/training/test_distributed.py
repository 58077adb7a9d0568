"""Several processes train as one does: same losses, every block read once, any number goes on where another
stopped (gloo).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.device import Device, probe
from newllm_lib.errors import UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.training.distributed.strategy import (
    DDP,
    FSDP2,
    check_distributed,
    describe,
    distribution,
    num_processes,
)
from tests.helpers.small_runs import write_rows, write_text

DRIVER = Path(__file__).with_name("ranks_driver.py")


def drive(folder: Path, *scenarios: str) -> dict:
    write_rows(folder)
    (folder / "text").rename(folder / "streamed")
    write_text(folder)
    process = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), *scenarios], capture_output=True, text=True, timeout=550
    )
    said = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in folder.glob("*.err*") if p.stat().st_size)
    assert process.returncode == 0, process.stderr[-2000:] + said
    return json.loads(process.stdout.splitlines()[-1])


def figures(run: dict) -> list[tuple]:
    """Step, loss and gradients' norm of each row, evaluations as well."""
    return [
        (row["step"], row.get("loss", row.get("eval_loss")), row.get("grad_norm", 0.0)) for row in run["rows"]
    ]


def check_same(run: dict, alone: dict) -> None:
    assert run["exits"] == [0] * len(run["exits"]), run["said"]
    ours, wanted = figures(run), figures(alone)
    assert [row[0] for row in ours] == [row[0] for row in wanted] and len(wanted) > 3
    for (_, loss, norm), (_, other, others_norm) in zip(ours, wanted, strict=True):
        assert loss == pytest.approx(other, abs=1e-5) and norm == pytest.approx(others_norm, rel=1e-3)


def check_read(scenario: dict, batch: int = 8) -> None:
    """Each block once in an epoch, and the same blocks whatever the number of processes."""
    alone = sorted(map(str, scenario["read"]["1"]))
    assert len(alone) == len(set(alone)) and len(alone) % batch == 0
    for count, blocks in scenario["read"].items():
        assert sorted(map(str, blocks)) == alone, count


def test_two_and_four_processes_train_as_one_does(tmp_path):
    check_all(drive(tmp_path, "carried", "shuffled", "streamed", "light", "replayed"))


@pytest.mark.slow
def test_tiny_gpt2_by_muon_adapters_and_blocks_whose_inputs_are_put_away(tmp_path):
    check_all(drive(tmp_path, "tiny_gpt2", "adapters", "offloaded"))


def check_all(found: dict) -> None:
    for name, scenario in found.items():
        assert scenario["1"]["status"] == "done"
        for count in scenario.keys() - {"1", "read"}:
            check_same(scenario[count], scenario["1"])
        if name in ("carried", "shuffled", "streamed"):
            check_read(scenario)


def test_killed_or_stopped_another_number_of_processes_goes_on(tmp_path):
    found = drive(tmp_path, "stopped", "killed", "cut", "uneven")
    broken = found["killed"]["broken"]
    assert broken["exits"] == [1, -9] and broken["status"] == "failed" and broken["seconds"] < 60
    assert "another one has ended" in broken["said"][0]
    check_same(found["killed"]["4"], found["killed"]["1"])
    stopped = found["stopped"]["broken"]
    assert stopped["exits"] == [130, 130] and stopped["status"] == "interrupted"
    assert found["stopped"]["saved"] == [f"checkpoint-{stopped['rows'][-1]['step']}"]
    check_same(found["stopped"]["continued"], found["stopped"]["1"])
    begun, whole = found["cut"]["begun"], found["cut"]["whole"]
    assert (
        begun["exits"] == [130, 130] and whole["exits"] == [130] and len(begun["rows"]) < len(whole["rows"])
    )
    check_same(found["cut"]["4"], found["cut"]["1"])
    check_whole_model(tmp_path / "cut" / "best")
    uneven = found["uneven"]["cut"]
    assert uneven["exits"] == [1, 1, 1] and uneven["rows"] == []
    assert all("would not train alike" in said and "in 3 parts" in said for said in uneven["said"])
    assert "process 2: fsdp2 in 1 parts" in uneven["said"][2]


def test_a_disk_that_is_full_for_a_moment_in_one_process_is_tried_again_by_all(tmp_path):
    found = drive(tmp_path, "full")["full"]
    for name, run in found.items():
        assert run["exits"] == [0, 0], (name, run["said"])
        assert run["saved"] == ["checkpoint-3", "checkpoint-4"] and run["status"] == "done"
        assert [row["step"] for row in run["rows"] if "loss" in row] == [1, 2, 3, 4]
        assert 3 <= run["out"].count("Trying again") <= 6 and "nothing was saved yet" in run["out"]
        check_whole = tmp_path / f"full-{name}" / "checkpoint-4" / "model.safetensors"
        assert check_whole.stat().st_size > 1000


def check_whole_model(folder: Path) -> None:
    """What was trained in parts is one ordinary model for its users."""
    import torch
    from transformers import AutoModelForCausalLM

    import newllm_lib.models  # noqa: F401

    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["model.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Phase7ForCausalLM" == model.config.architectures[0]
    assert torch.isfinite(model(torch.arange(5).unsqueeze(0)).logits).all()


# --- what is chosen, and what is refused
# --------------------------------------------------------------------------------


def gpu(memory: float) -> Device:
    return Device("h100", "H100", "cuda", "bf16", "sdpa", "triton", True, True, memory, 8, (9, 0))


def recipe(**changes):
    return load_recipe("phase7_100m", {"sized_for": "h100", **changes})


def test_the_estimate_chooses_and_says_so():
    assert distribution(recipe(), gpu(80)) == DDP and "a whole model on each (it fits)" in describe(
        recipe(), gpu(80), 2
    )
    assert distribution(recipe(), gpu(1.5)) == FSDP2
    assert "into 2 parts (the model is too large" in describe(recipe(num_gpus=2), gpu(1.5), 2)
    assert distribution(recipe(distribution="fsdp2"), gpu(80)) == FSDP2
    assert (
        distribution(load_recipe("demo", {"sized_for": "h100"}), gpu(0.5)) == DDP
    )  # fsdp2 is chosen for Phase 7 only


def test_as_many_processes_as_asked_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = probe()
    assert [num_processes(recipe(num_gpus=n), cpu) for n in (1, 3, "auto")] == [1, 3, 1]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert num_processes(recipe(num_gpus="auto"), gpu(80)) == 2
    with pytest.raises(UsageError, match="this machine has 2"):
        num_processes(recipe(num_gpus=3), gpu(80))
    monkeypatch.setenv("WORLD_SIZE", "8")  # torchrun's word counts
    assert num_processes(recipe(num_gpus=2), gpu(80)) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 63}, ["63", "2 processes", "--batch_size 62"]),
        (
            {"distribution": "fsdp2", "optimizer_in_backward": True},
            ["optimizer_in_backward", "--optimizer adamw"],
        ),
        ({"distribution": "fsdp2", "optimizer": "muon"}, ["muon", "whole matrices"]),
        (
            {"distribution": "fsdp2", "weights_dtype": "bf16", "optimizer": "adafactor"},
            ["weights_dtype", "float32"],
        ),
        ({"distribution": "fsdp2", "lora_rank": 4}, ["lora_rank", "ddp"]),
        ({"distribution": "fsdp2", "model": "new_llm"}, ["Phase 7", "new_llm", "ddp"]),
        ({"distribution": "fsdp2", "dtype": "fp16"}, ["fp16", "bf16 or fp32"]),
        ({"weights_dtype": "bf16", "optimizer": "adamw8bit"}, ["adamw8bit", "drift"]),
        ({"model": "new_llm", "teacher": "gpt2"}, ["teacher", "one process"]),
        ({"task": "dpo"}, ["Preference training", "one process"]),
    ],
)
def test_what_does_not_go_together_is_one_line_that_says_why(changes, words):
    with pytest.raises(UsageError) as error:
        check_distributed(recipe(**changes), gpu(80), 2)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    if "batch_size" not in changes and "distribution" not in changes:
        check_distributed(recipe(**changes), gpu(80), 1)  # one process may


def test_accelerates_own_fsdp_is_not_mixed_in(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="--distribution"):
        check_distributed(recipe(), gpu(80), 2)
