"""What a micro-batch is trained on: its next tokens, or a teacher's whole distribution beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training.stateful_batches import RecurrentStateBuffer

if TYPE_CHECKING:
    from newllm_lib.training.distill import Teacher


class NextTokenLoss:
    """The model's own loss.

    Args:
        carried: the state that each row goes on from, where it is carried from block to block.
    """

    def __init__(self, carried: RecurrentStateBuffer | None = None):
        self.carried = carried

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """The part of the step's loss that this micro-batch has, as a scalar.

        Args:
            batch: `input_ids` and `labels` (already shifted), both (batch, time).
            tokens: labels in the whole step, of all processes: what the sum of losses is divided by.
        """
        inputs = {
            "input_ids": batch["input_ids"],
            "shift_labels": batch["labels"],
            "num_items_in_batch": tokens,
        }
        if self.carried is None:
            return model(**inputs)["loss"]
        outputs = model(**inputs, state=self.carried.get(), use_cache=True)
        self.carried.set(outputs["state"])
        return outputs["loss"]


class DistilledLoss(NextTokenLoss):
    """Knowledge distillation: computed from hidden states, outside the model, so in one process only.

    Args:
        autocast: the run's mixed precision, as a context.
    """

    def __init__(
        self,
        teacher: Teacher,
        autocast: Callable[[], AbstractContextManager],
        carried: RecurrentStateBuffer | None = None,
    ):
        super().__init__(carried)
        self.teacher, self.autocast = teacher, autocast

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        ids = batch["input_ids"]
        state = None if self.carried is None else self.carried.get()
        with self.autocast():
            outputs = model.model(input_ids=ids, state=state, use_cache=self.carried is not None)
            loss = self.teacher.loss(model, outputs.last_hidden_state, ids, batch["labels"], tokens)
        if self.carried is not None:
            self.carried.set(outputs.state)
        return loss


def refuse_distillation(recipe: Recipe) -> None:
    """What cannot go together.

    Raises:
        UsageError: names it.
    """
    if recipe.teacher is None:
        return
    if recipe.model != "new_llm":
        raise UsageError(f"teacher: only new_llm is distilled into, not {recipe.model}.")
    if recipe.optimizer_in_backward or recipe.lora_rank:
        raise UsageError(
            "teacher does not go together with optimizer_in_backward or lora_rank: leave one of them out."
        )
