"""Answers as the data have them, learned by TRL's SFTTrainer, 0.29.1 to 1.16.

The only file that knows this trainer. Ours are the token ids (`rows`) and the held-out figures, in bits per
byte of the answers' text, by which bases with different tokenizers can be compared.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from datasets import Dataset, disable_progress_bars
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from newllm_lib.data.packing import PackedSplit
from newllm_lib.evaluation.metrics import evaluate
from newllm_lib.generation.stateful import eval_mode, model_device
from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.curves import plot_curves
from newllm_lib.training.sft.rows import DialogueRows
from newllm_lib.training.trl.arguments import checkpointing, one_gpu
from newllm_lib.training.trl.task import TrlTask

# TRL's and transformers' own use of it
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
_SAME = 1e-3  # logits that differ less are the same


class SFTTask(TrlTask):
    """Raise the probability of the answers in dialogues."""

    memory_advice = "lower --max_seq_length, give --lora_rank 16 or --load_in 4bit, or name a smaller --base"
    logged = ("mean_token_accuracy", "entropy")

    def __init__(self, recipe: Recipe, rows: DialogueRows, held_out: HeldOut, recompute: bool):
        """
        Args:
            recompute: whether activations are computed again in the backward pass.
        """
        self.recipe, self.data, self.held_out, self.recompute = recipe, rows, held_out, recompute
        self.unit = "rows" if recipe.packing else "dialogues"

    def build_trainer(self, model, arguments: dict) -> SFTTrainer:
        recipe, adapters = self.recipe, None
        if recipe.lora_rank:
            adapters = lora_config(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
        own = {"neftune_noise_alpha": recipe.neftune_alpha or None}
        more = {"peft_config": adapters, "recompute": self.recompute}
        trainer = sft_trainer(model, self.held_out.tokenizer, arguments | own, self.data, **more)
        if adapters:  # by default PEFT asks the hub for the base's vocabulary at each save
            trainer.model.save_pretrained = functools.partial(
                trainer.model.save_pretrained, save_embedding_layers=False
            )
        return trainer

    def initial_figures(self) -> dict:
        return self.held_out.before

    def measure(self, model) -> dict:
        return self.held_out.figures(model)

    def as_row(self, figures: dict) -> dict:
        return {f"eval_{name}": value for name, value in figures.items()}

    def in_words(self, figures: dict) -> str:
        return f"{figures['bits_per_byte']:.4f} bits per byte of the answers"

    def progress_words(self, row: dict) -> str:
        return f"accuracy {100 * row['mean_token_accuracy']:.0f}%" if "mean_token_accuracy" in row else ""

    def sample(self, model, step: int, epoch: float, figures: dict) -> None:
        self.held_out.samples.take(model, step, epoch, figures["bits_per_byte"])

    def plot(self, run: Run) -> None:
        plot_curves(run)


class HeldOut:
    """What is held out of the training data: its figures, and what the model says.

    Args:
        split: packed.
        tokenizer: the base's.
        samples: asks the same prompts at each evaluation.
        dtype: of matrix products.
    """

    def __init__(self, split: PackedSplit, tokenizer, samples, dtype: str):
        self.split, self.tokenizer, self.samples, self.dtype = split, tokenizer, samples, dtype
        self.before: dict = {}

    def figures(self, model) -> dict:
        """Loss, bits per byte and more of the held-out answers (`evaluation.metrics`)."""
        return evaluate(model, self.split, self.tokenizer, dtype=self.dtype, health=False)


def sft_trainer(
    model, tokenizer, arguments: dict, rows: Sequence[dict], recompute: bool = False, **more
) -> SFTTrainer:
    """TRL's trainer on rows that have their token ids and labels.

    Args:
        arguments: of its configuration.
        rows: dicts of `input_ids` and `labels`; `seq_lengths` too where a row holds several dialogues.
        recompute: whether activations are computed again in the backward pass.
        more: further arguments of the trainer.
    """
    disable_progress_bars()
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    end = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = pad  # else the Trainer says it does
    own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = SFTTrainer(
        model=model,
        args=one_gpu(SFTConfig(**arguments, **own, **checkpointing(SFTConfig, recompute))),
        data_collator=DataCollatorForLanguageModeling(pad, padding_free="seq_lengths" in rows[0]),
        # TRL looks at a data set when it is made; ours is given to it as it is
        train_dataset=Dataset.from_list([{"input_ids": [end, end], "labels": [end, end]}]),
        processing_class=tokenizer,
        **more,
    )
    trainer.train_dataset = rows
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL makes a quantized base's adapters bfloat16, which a T4 has not
            parameter.data = parameter.data.float()
    return trainer


@torch.no_grad()
def keeps_documents_apart(model) -> bool:
    """Whether a model reads several documents in one row as if each stood alone, told by their positions."""
    device = model_device(model)
    first, second = [3, 1, 4, 1, 5], [9, 2, 6]
    both = torch.tensor([first + second], device=device) % model.config.get_text_config().vocab_size
    positions = torch.tensor([[*range(len(first)), *range(len(second))]], device=device)
    with eval_mode(model):
        alone = model(input_ids=both[:, len(first) :], use_cache=False).logits.float()
        try:
            packed = model(input_ids=both, position_ids=positions, use_cache=False).logits.float()
        except TypeError:  # it knows no positions
            return False
    return bool((packed[:, len(first) :] - alone).abs().max() <= _SAME * alone.abs().max().clamp(min=1.0))
