"""What a step of ours costs the processor, beside the same step of TRL's trainer as its pages show it."""

from __future__ import annotations

import cProfile
import pstats
from collections import Counter

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train
from newllm_lib.training.sft import sft_task
from newllm_lib.training.trl.arguments import checkpointing
from tests.helpers.chat_bases import chat_base
from tests.helpers.texts import dialogues, write_jsonl

BATCH, STEPS, FIRST, LAST = 4, 6, 2, 4  # what is counted begins after step 2 and ends with step 4: no log
SYNCS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")


class Count(TrainerCallback):
    """Operators, or calls of Python functions, of the steps in between."""

    def __init__(self, calls: bool):
        self.calls, self.found = calls, Counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == FIRST:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            self.profile = cProfile.Profile() if self.calls else torch.profiler.profile(activities=kinds)
            self.profile.__enter__()
        if state.global_step == LAST:
            self.profile.__exit__(None, None, None)
            if self.calls:
                self.found["calls"] = pstats.Stats(self.profile).total_calls
            else:
                operators = self.profile.key_averages()
                self.found.update({one.key: one.count for one in operators if one.key.startswith("aten::")})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "train.jsonl", [{"messages": m} for m in dialogues(60)])
    chat_base(folder / "base", "qwen2")
    return folder


def ours(place, folder, count, monkeypatch):
    made = sft_task.sft_trainer
    monkeypatch.setattr(sft_task, "sft_trainer", lambda *a, **more: made(*a, **more, callbacks=[count]))
    choices = {
        "sized_for": "cpu",
        "base": str(place / "base"),
        "data_dir": str(place / "data"),
        "output_dir": str(folder / "run"),
        "max_seq_length": 96,
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
        "max_steps": STEPS,
        "lora_rank": 4,
        "evals_per_epoch": 1,
        "logging_steps": STEPS,
        "sample_tokens": 0,
    }
    train(load_recipe("dolly", choices))


def plain(place, folder, count):
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    rows = [
        {"prompt": [talk[0]], "completion": [talk[1]]} for talk in dialogues(60)
    ]  # as ours: loss on the answers
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        max_length=96,
        logging_steps=STEPS,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        **checkpointing(SFTConfig, False),
    )
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(place / "base"),
        peft_config=lora_config(model, 4, 8, 0.0),
        callbacks=[count],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


@pytest.mark.parametrize("calls", [False, True], ids=["operators", "calls"])
def test_a_step_costs_no_more_than_a_plain_script_of_trls(calls, place, tmp_path, monkeypatch):
    mine, theirs = Count(calls), Count(calls)
    ours(place, tmp_path, mine, monkeypatch)
    plain(place, tmp_path, theirs)
    assert theirs.found.total() > 1000
    assert mine.found.total() <= 1.02 * theirs.found.total(), mine.found - theirs.found
    for name in SYNCS:
        assert mine.found[name] <= theirs.found[name], name
