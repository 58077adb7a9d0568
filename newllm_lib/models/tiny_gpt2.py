"""TinyGPT2, the attention baseline: transformers' GPT-2 in the size of a given New-LLM."""

from __future__ import annotations

import warnings

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils import can_return_tuple

from newllm_lib.layers.document import document_starts, positions_in_document
from newllm_lib.models.causal_lm import loss_and_logits
from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy


class TinyGPT2Config(GPT2Config):
    """GPT-2's; `n_positions`: the context window; `separate_documents`: packed documents apart."""

    model_type = "tiny_gpt2"
    auto_map = {}

    def __init__(self, separate_documents: bool = True, **kwargs):
        self.separate_documents = separate_documents
        super().__init__(**kwargs)


class TinyGPT2Model(GPT2Model):
    """TinyGPT2 without its head, for `AutoModel`: GPT-2's."""

    config_class = TinyGPT2Config


class WindowFull(StoppingCriteria):
    """Ends `generate` where the model has no position for another token, and says so."""

    def __init__(self, window: int):
        self.window = window

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor | None, **kwargs
    ) -> torch.BoolTensor:
        full = input_ids.shape[1] > self.window  # the last token was chosen, and is never read
        if full:
            warnings.warn(
                f"generate() ends here: prompt and answer fill this model's window of {self.window} tokens. "
                "`newllm chat` goes on beyond it.",
                stacklevel=2,
            )
        return torch.full((len(input_ids),), full, dtype=torch.bool, device=input_ids.device)


class TinyGPT2ForCausalLM(GPT2LMHeadModel):
    """GPT-2 with New-LLM's loss (no logits are held in training) and its treatment of packed documents."""

    config_class = TinyGPT2Config

    def generate(self, *args, stopping_criteria: list[StoppingCriteria] | None = None, **kwargs):
        """transformers' `generate`, which ends with a warning where the window is full.

        Raises:
            ValueError: the prompt alone is longer than the window.
        """
        criteria = StoppingCriteriaList([*(stopping_criteria or ()), WindowFull(self.config.n_positions)])
        return super().generate(*args, stopping_criteria=criteria, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, *args, **kwargs) -> dict:
        """As transformers'.

        Raises:
            ValueError: what is read is longer than the window.
        """
        length, window = input_ids.shape[1], self.config.n_positions
        if length > window:
            raise ValueError(
                f"{length} tokens are more than the window of {window}: cut the prompt at its left."
            )
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def half_weights(self) -> list[str]:
        """Names of the parameters that are read in autocast's dtype alone, and may be given in it."""
        products = ("c_attn", "c_proj", "c_fc")
        blocks = self.transformer.h.named_parameters("transformer.h")
        return [name for name, p in blocks if name.split(".")[-2] in products and p.requires_grad]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values=None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithCrossAttentions:
        """As `NewLLMForCausalLM.forward`, with `past_key_values` instead of a state."""
        packed = (
            past_key_values is None
            and attention_mask is None
            and position_ids is None
            and input_ids is not None
        )
        if (
            packed
            and self.config.separate_documents
            and not use_cache
            and self.config.bos_token_id is not None
        ):
            # transformers reads positions that start anew as packed documents and masks attention across them
            position_ids = positions_in_document(document_starts(input_ids, self.config.bos_token_id))
            use_cache = False
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss, logits = loss_and_logits(
            self,
            hidden,
            labels,
            shift_labels,
            logits_to_keep,
            lambda shifted: linear_cross_entropy(hidden, self.lm_head.weight, shifted, num_items_in_batch),
        )
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
