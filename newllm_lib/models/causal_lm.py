"""What our models with a fixed-size state share: embeddings, `generate`, loss and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy


def parameters(model: nn.Module) -> int:
    """Stored, trainable parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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
        loss = None
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None:
            loss = self.loss_of(outputs, shift_labels, num_items_in_batch)
        logits = None
        if not (self.training and loss is not None):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
        state = outputs.state
        if self.training and loss is not None and state is not None:
            state = state.detach()  # a compiled step would send zeros back through all of it otherwise
        return CausalLMOutput(loss, logits, state, outputs.hidden_states)

    def loss_of(
        self, outputs: ModelOutput, labels: torch.Tensor, tokens: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The loss of the backbone's outputs; labels (batch, time) are shifted, `tokens` divides the sum."""
        return linear_cross_entropy(outputs.last_hidden_state, self.lm_head.weight, labels, tokens)
