"""Preference training on `trl.DPOTrainer`: the only file that knows TRL (0.29.1 to 1.16 give it the same names).

TRL computes the loss and its figures. Ours are the token ids (`data.preferences.encode`), the reference's log-probabilities where
they are computed once before training, the order of the data, the optimizer, the log, the evaluation and the checkpoints: all but
the first two are `RunTrainer`'s.
"""

from __future__ import annotations

import copy
import functools
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each run to the hub

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from torch.utils.data import DataLoader, Sampler  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

from newllm_lib import console  # noqa: E402
from newllm_lib.errors import NewLLMError, UsageError  # noqa: E402
from newllm_lib.evaluation.preferences import pair_log_probs, preference_metrics  # noqa: E402
from newllm_lib.recipe import Recipe  # noqa: E402
from newllm_lib.runs import write_status  # noqa: E402
from newllm_lib.training.arguments import on_one_gpu  # noqa: E402
from newllm_lib.training.callbacks import DataOrder  # noqa: E402
from newllm_lib.training.preference_curves import plot_preferences  # noqa: E402
from newllm_lib.training.preference_log import row_of_evaluation  # noqa: E402
from newllm_lib.training.trainer import RunTrainer  # noqa: E402

warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")  # TRL's and transformers' own use of it
LOSSES = (  # TRL's names that need no further argument
    "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sft",
)  # fmt: skip
NO_LOSS = 1e-7  # a loss that is 0 to all digits: nothing is learned from it any more, and something is wrong


def losses(loss_type: str) -> list[str]:
    """The names in a recipe's `loss_type`.

    Raises:
        UsageError: TRL knows no such loss.
    """
    names = loss_type.split("+")
    unknown = [name for name in names if name not in LOSSES]
    if unknown:
        raise UsageError(f"loss_type {loss_type}: there is no {unknown[0]!r}; use one of {', '.join(LOSSES)}.")
    return names


def dpo_config(recipe: Recipe, values: dict) -> DPOConfig:
    """TRL's arguments: those of every run, and what is DPO's own."""
    own = {
        "beta": recipe.beta, "loss_type": losses(recipe.loss_type), "max_length": recipe.max_seq_length,
        "precompute_ref_log_probs": True,
        _checkpointing(): recipe.gradient_checkpointing != "off",  # TRL has it on; at these lengths it only costs time
        "disable_dropout": False,  # the base's is off already; TRL would also switch off the adapters'
    }  # fmt: skip
    values = {name: value for name, value in values.items() if name not in ("gradient_checkpointing", "activation_checkpointing")}
    return on_one_gpu(DPOConfig(**values | own))


def _checkpointing() -> str:
    """What TRL's arguments call recomputing activations: transformers renames it."""
    known = {f.name for f in fields(DPOConfig)}
    return "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"


class PairSampler(Sampler[int]):
    """The order of an epoch's pairs, from (seed, epoch) alone; a whole number of batches."""

    def __init__(self, pairs: int, batch_size: int, seed: int):
        self.pairs, self.used, self.seed, self.epoch = pairs, pairs - pairs % batch_size, seed, 0

    def seek(self, position: int) -> None:
        """How many pairs the run has seen: the next iteration is the epoch that this lies in, from its beginning."""
        self.epoch = position // len(self)

    def __len__(self) -> int:
        return self.used

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.pairs, generator=torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch))
        yield from order[: self.used].tolist()


class PreferenceTrainer(RunTrainer, DPOTrainer):
    """Trains one run by preference. `data` is a `PreparedPairs`; everything on disk is as with `RunTrainer`."""

    def __init__(self, *, model, args: DPOConfig, recipe: Recipe, data, peft_config=None, **kwargs):
        plain = replace(recipe, sample_tokens=0)  # the held-out prompts are what is answered here
        super().__init__(
            model=model, args=args, recipe=plain, data=data, peft_config=peft_config, processing_class=data.tokenizer,
            ref_model=_reference(model, recipe), train_dataset=_as_dataset(data.train, data.train_reference), **kwargs,
        )  # fmt: skip
        if peft_config is not None:
            adapted = self.accelerator.unwrap_model(self.model)
            # by default PEFT asks the hub for the base's vocabulary at each save
            adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)

    # --- what TRL would do by itself --------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # token ids already

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset  # the reference's log-probabilities are there already

    def create_model_card(self, *args, **kwargs) -> None:
        """The run has a card of its own (`training.card`)."""

    # --- adapters are saved apart: the base is in the run, or on the hub ---------------------------------------------

    def _save_model(self, folder: Path) -> None:
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)

    def _save(self, output_dir=None, state_dict=None) -> None:
        return super(RunTrainer, self)._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        return super(RunTrainer, self)._load_from_checkpoint(resume_from_checkpoint, model)

    # --- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        sampler = PairSampler(len(self.train_dataset), self.recipe.batch_size, self.recipe.seed)
        self.add_callback(DataOrder(sampler))
        loader = DataLoader(
            self.train_dataset, batch_size=self.args.per_device_train_batch_size, sampler=sampler,
            collate_fn=self.data_collator, drop_last=True, generator=torch.Generator(),
        )  # fmt: skip
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return DPOTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    # --- the log ----------------------------------------------------------------------------------------------------

    def _interval_row(self, logs: dict) -> dict:
        """Loss and speed since the last row, and TRL's figures averaged over the same steps."""
        step, seconds = self.state.global_step, time.monotonic() - self._interval_start - self._interval_pause
        loss = self._gather_mean(self._interval_loss) / max(1, step - self._logged_step)
        row = {"step": step, "epoch": round(self.state.epoch, 6), "loss": loss, "learning_rate": logs["learning_rate"]}
        if logs.get("grad_norm") is not None:
            row["grad_norm"] = float(logs["grad_norm"])
        for name, values in self._metrics["train"].items():
            if name.startswith(("rewards/", "logps/")):
                row[name] = sum(values) / max(1, len(values))
        self._metrics["train"].clear()
        row["pairs_per_second"] = round((step - self._measured_from) * self.recipe.batch_size / max(1e-9, seconds), 2)
        if self.args.device.type == "cuda":
            row["gpu_memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        self._interval_loss.zero_()
        self._logged_step = self._measured_from = step
        self._interval_start, self._interval_pause = time.monotonic(), 0.0
        return {**row, "time": round(time.time(), 3)}

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """Append a row to `metrics.jsonl`, show it, and stop a run that learns nothing any more."""
        if "loss" not in logs:
            return
        if self.state.global_step == self._logged_step:  # a save came at a step that was logged already
            return
        row = self._interval_row(logs)
        super(DPOTrainer, self).log(dict(row), start_time)
        self._append(row)
        self._check_finite(row["loss"])
        if row["loss"] < NO_LOSS:
            raise NewLLMError(
                f"The loss is 0 at step {row['step']}: the answers are told apart beyond all measure, nothing is learned any "
                f"more. Lower --learning_rate (now {self.recipe.learning_rate:.1e}) or raise --beta, and give the new run "
                "another --output_dir."
            )
        self.log_block.training_line(row, self.state, final=self.state.global_step == self.state.max_steps)
        write_status(self.run, step=self.state.global_step, total_steps=self.state.max_steps)

    # --- evaluation -------------------------------------------------------------------------------------------------

    def measure(self) -> dict:
        """The figures of the model as it is now on the held-out pairs, its answers' health among them."""
        model = self.accelerator.unwrap_model(self.model)
        data, pad = self.data, self.data.tokenizer.pad_token_id
        held_out = data.evaluation
        log_probs = pair_log_probs(model, held_out.rows, pad, self.eval_dtype)
        return preference_metrics(log_probs, data.evaluation_reference, held_out.pairs, self.recipe.beta) | data.watch(
            model, self.eval_dtype
        )

    def evaluate(self, *args, **kwargs) -> dict:
        """Measure on the held-out pairs; keep the best model (by loss) in `best/`; stop where the answers have collapsed."""
        started = time.monotonic()
        figures = self.record(self.measure())
        self._interval_pause += time.monotonic() - started
        return figures

    def record(self, found: dict) -> dict:
        """Write down figures of the model as it is now (before training those of the base, which are known), as `evaluate`."""
        step = self.state.global_step
        self._check_finite(found["loss"])
        best = self.progress.judge(found["loss"], step)
        row = {"step": step, "epoch": round(self.state.epoch or 0.0, 6), **row_of_evaluation(found), "best": best}
        self._append({**row, "time": round(time.time(), 3)})
        self.log_block.validation_line(found, best)
        if best:
            self._save_for_use(self.run.best)
        plot_preferences(self.run)
        self._stop_if_hopeless(found)
        figures = {k: v for k, v in row.items() if k.startswith("eval_")}
        super(DPOTrainer, self).log({k: v for k, v in figures.items() if isinstance(v, float)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _stop_if_hopeless(self, found: dict) -> None:
        patience = self.recipe.patience
        if patience is not None and self.progress.evaluations_without_improvement >= patience:
            self.control.should_training_stop = True
            console.say(f"  No better held-out loss in {patience} evaluations: stopping early")
        problem = self.data.problem(found)
        if problem is None:
            self.collapsed_before = False
            return
        console.say(f"  Flagged: {problem}")
        if getattr(self, "collapsed_before", False):
            self.control.should_training_stop = True
            console.say("  The second time in a row: stopping")
        self.collapsed_before = True


def _as_dataset(encoded, reference: torch.Tensor) -> Dataset:
    return Dataset.from_list([
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(encoded.rows, reference.tolist(), strict=True)
    ])  # fmt: skip


def _reference(model, recipe: Recipe):
    """A frozen copy where TRL needs one: not with adapters (they are switched off), nor as its log-probabilities are computed
    before (but TRL below 1.0 then insists, and would look for it in transformers' own models)."""
    if recipe.lora_rank or int(metadata.version("trl").split(".")[0]) >= 1:
        return None
    return copy.deepcopy(model)
