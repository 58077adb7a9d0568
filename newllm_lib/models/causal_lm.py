"""What our models with a fixed-size state share: embeddings, `generate`, loss and logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from newllm_lib.layers.document import document_starts
from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy


def parameters(model: nn.Module) -> int:
    """Stored, trainable parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def loss_and_logits(
    model: nn.Module,
    hidden: torch.Tensor,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The loss of labels (batch, time), which `loss_of` makes of shifted ones; logits but where training has
    no use for them. Arguments as in `CausalLMWithState.forward`."""
    if labels is not None and shift_labels is None:
        shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    loss = None if shift_labels is None else loss_of(shift_labels)
    if model.training and loss is not None:
        return loss, None
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return loss, model.lm_head(hidden[:, kept])


@dataclass
class BackboneOutput(ModelOutput):
    """`last_hidden_state` (batch, time, what the head reads); `state` (batch, layers, state_size) float32;
    `hidden_states` as in `CausalLMOutput`."""

    last_hidden_state: torch.Tensor | None = None
    state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class BackboneWithState:
    """Mixed into a transformers model before its other bases: a backbone with `embed_tokens` and `layers`."""

    @property
    def state_size(self) -> int:
        return self.layers[0].state_size

    def initial_state(self, batch: int) -> torch.Tensor:
        """The state before the first token: zeros (batch, layers, state_size), float32."""
        device = next(self.parameters()).device
        return torch.zeros(batch, len(self.layers), self.state_size, device=device, dtype=torch.float32)

    def document_starts(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(batch, time) bool; None where none are seen: in embeddings, or in a model that looks for none.

        Raises:
            ValueError: both are given, or neither.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, one of the two.")
        if input_ids is None or not self.config.reset_at_bos:
            return None
        return document_starts(input_ids, self.config.bos_token_id)

    def shows_hidden_states(self, asked: bool | None) -> bool:
        """Whether a call with `output_hidden_states=asked` returns what each layer leaves."""
        return self.config.output_hidden_states if asked is None else asked


@dataclass
class CausalLMOutput(ModelOutput):
    """`loss` in nats a token; `logits` (batch, time, vocab); `state` (batch, layers, state_size) float32;
    `hidden_states`, each (batch, time, dim): the embeddings, then what each layer leaves, the last normed.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


class CausalLMWithState:
    """Mixed into a transformers model before its other bases, which give `model` and `lm_head`."""

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is our own tensor, not a key-value cache

    def _reorder_cache(self, state: torch.Tensor, beam_idx: torch.Tensor) -> torch.Tensor:
        return state.index_select(0, beam_idx.to(state.device))

    def prepare_inputs_for_generation(
        self, input_ids, state=None, attention_mask=None, inputs_embeds=None, use_cache=True, **kwargs
    ):
        inputs = {"state": state, "attention_mask": attention_mask, "use_cache": use_cache}
        if kwargs.get("logits_to_keep") is not None:
            inputs["logits_to_keep"] = kwargs["logits_to_keep"]
        if state is not None:
            return {**inputs, "input_ids": input_ids[:, -1:]}
        if inputs_embeds is not None:
            return {**inputs, "inputs_embeds": inputs_embeds}
        return {**inputs, "input_ids": input_ids}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        state: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """
        Args:
            labels: (batch, time), shifted inside (labels = input_ids); or shift_labels, already shifted.
                -100: not predicted.
            logits_to_keep: return logits of the last this many positions (0: all). In training with labels,
                none are returned: the loss is computed without forming them.
            num_items_in_batch: divide the summed loss by this (gradient accumulation over several calls).
            kwargs: `output_hidden_states`, and `return_dict=False` for a tuple, as in all of transformers.

        In training with labels the state comes without gradients: they stop where the block ends
        (`training.stateful_batches`).
        """
        outputs = self.model(
            input_ids, attention_mask, inputs_embeds, state, use_cache, return_dict=True, **kwargs
        )
        loss, logits = loss_and_logits(
            self,
            outputs.last_hidden_state,
            labels,
            shift_labels,
            logits_to_keep,
            lambda shifted: self.loss_of(outputs, shifted, num_items_in_batch),
        )
        state = outputs.state
        if self.training and loss is not None and state is not None:
            state = state.detach()  # a compiled step would send zeros back through all of it otherwise
        return CausalLMOutput(loss, logits, state, outputs.hidden_states)

    def loss_of(
        self, outputs: ModelOutput, labels: torch.Tensor, tokens: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The loss of the backbone's outputs; labels (batch, time) are shifted, `tokens` divides the sum."""
        return linear_cross_entropy(outputs.last_hidden_state, self.lm_head.weight, labels, tokens)
