"""What a micro-batch is trained on: its next tokens, or a teacher's whole distribution beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from newllm_lib.training.distill import Teacher
from newllm_lib.training.stateful_batches import RecurrentStateBuffer


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
