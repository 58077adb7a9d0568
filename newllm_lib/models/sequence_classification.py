"""Our models with a head that scores a whole text, for reward models; importing registers them for
`AutoModelForSequenceClassification`."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from newllm_lib.models.new_llm import NewLLMConfig, NewLLMModel, NewLLMPreTrainedModel
from newllm_lib.models.phase7 import Phase7Config, Phase7Model, Phase7PreTrainedModel
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config


class TinyGPT2ForSequenceClassification(GPT2ForSequenceClassification):
    """GPT-2's."""

    config_class = TinyGPT2Config


class _LastTokenScore:
    """Mixed into a transformers model with `model` and `score`: logits at the last token that is no
    padding."""

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """`logits` (batch, num_labels).

        Args:
            input_ids: (batch, time), padded on either side.
            attention_mask: (batch, time), 0 for padding; without it what equals `pad_token_id` is padding.
            labels: (batch,) or (batch, num_labels): a loss as transformers' classifiers have it.
        """
        outputs = self.model(
            input_ids, attention_mask, inputs_embeds, use_cache=False, return_dict=True, **kwargs
        )
        read = outputs.last_hidden_state
        real = attention_mask
        if real is None and input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        if real is None:
            last = torch.full((read.shape[0],), -1, device=read.device)
        else:
            last = (torch.arange(read.shape[1], device=read.device) * real.long()).argmax(-1)
        logits = self.score(read[torch.arange(read.shape[0], device=read.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(loss, logits, hidden_states=outputs.hidden_states)


class NewLLMForSequenceClassification(_LastTokenScore, NewLLMPreTrainedModel):
    """New-LLM with a score of the whole text."""

    config_class = NewLLMConfig

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = NewLLMModel(config)
        self.score = nn.Linear(config.output_size, config.num_labels, bias=False)
        self.post_init()


class Phase7ForSequenceClassification(_LastTokenScore, Phase7PreTrainedModel):
    """Phase 7 (and 8) with a score of the whole text."""

    config_class = Phase7Config

    def __init__(self, config: Phase7Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = Phase7Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


AutoModelForSequenceClassification.register(NewLLMConfig, NewLLMForSequenceClassification, exist_ok=True)
AutoModelForSequenceClassification.register(Phase7Config, Phase7ForSequenceClassification, exist_ok=True)
AutoModelForSequenceClassification.register(TinyGPT2Config, TinyGPT2ForSequenceClassification, exist_ok=True)
