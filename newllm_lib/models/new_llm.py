"""New-LLM: a language model without attention, whose memory is a context vector in each block.

`NewLLMForCausalLM` is an ordinary transformers model: `from_pretrained`, `generate`, PEFT and TRL work on it.
Its state is one tensor (batch, layers, state_size), the same size after ten tokens and after ten million,
carried through `generate` in the output field `state`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.utils import can_return_tuple

from newllm_lib import layers
from newllm_lib.layers.context_block import ContextBlock, ContextVector
from newllm_lib.layers.document import padding
from newllm_lib.models.causal_lm import BackboneOutput, BackboneWithState, CausalLMWithState
from newllm_lib.models.initialization import init_context_vector, init_plain
from newllm_lib.ops.add_norm import add_norm
from newllm_lib.ops.embedding import token_embedding
from newllm_lib.removed import MODEL_OPTIONS, without_removed


class NewLLMConfig(PreTrainedConfig):
    """Sizes of a New-LLM.

    Args:
        vocab_size: tokens of the vocabulary.
        hidden_size: channels of the residual stream.
        context_dim: channels of the context vector that each block carries.
        mlp_size: inner channels of the token MLP.
        num_hidden_layers: blocks; with the sequential recurrence, layers of the per-token MLP.
        conv_width: tokens that the short convolution reads.
        recurrence: "parallel" (blocks of `layers.context_block`) or "sequential" (the original's equations,
            `layers.sequential_context`).
        time_scales: how long the channels of a context vector remember at the start of training: "even" (4 to
            150 tokens) or "multi" (groups from 1 to 4,096 tokens).
        context_eps: of the norm that reads the context vector.
        dropout: on the embeddings and on what each layer adds to the stream.
        initializer_range: standard deviation of the first weights.
        reset_at_bos: a `bos_token_id` in the input begins a document, which knows nothing of the text before.
        bos_token_id: the token that begins a document; None: the input is one document.
        tie_word_embeddings: the head is the embedding (never with the sequential recurrence).

    Raises:
        NewLLMError: the model was trained with an option that is gone.
    """

    model_type = "new_llm"
    auto_map = {}  # trl reads it from every config

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        context_dim: int = 256,
        mlp_size: int = 1024,
        num_hidden_layers: int = 4,
        conv_width: int = 4,
        recurrence: str = "parallel",
        time_scales: str = "even",
        context_eps: float = 1e-6,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        reset_at_bos: bool = True,
        bos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        kwargs = without_removed(kwargs, MODEL_OPTIONS, "This model's configuration")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.context_dim = context_dim
        self.mlp_size = mlp_size
        self.num_hidden_layers = num_hidden_layers
        self.conv_width = conv_width
        self.recurrence = recurrence
        self.time_scales = time_scales
        self.context_eps = context_eps
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.reset_at_bos = reset_at_bos
        tied = tie_word_embeddings and recurrence == "parallel"
        super().__init__(bos_token_id=bos_token_id, tie_word_embeddings=tied, **kwargs)

    @property
    def output_size(self) -> int:
        """Channels of what the head reads."""
        return self.hidden_size if self.recurrence == "parallel" else self.mlp_size


class NewLLMPreTrainedModel(PreTrainedModel):
    config_class = NewLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ContextBlock"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if init_plain(module, std):
            return
        if isinstance(module, ContextVector):
            init_context_vector(module, self.config.time_scales)
        elif isinstance(module, ContextBlock):  # residual branches start small, as in GPT-2
            residual = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.context.out.weight, std=residual)
            init.normal_(module.mlp.down.weight, std=residual)


class NewLLMModel(BackboneWithState, NewLLMPreTrainedModel):
    """Everything but the head: ids (batch, time) -> hidden states (batch, time, output_size), new state."""

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        if config.recurrence == "parallel":
            self.layers = nn.ModuleList(ContextBlock(config) for _ in range(config.num_hidden_layers))
            self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        else:
            sizes = config.hidden_size, config.context_dim, config.mlp_size, config.num_hidden_layers
            self.layers = nn.ModuleList([layers.SequentialContext(*sizes)])
            self.norm = nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """
        Args:
            input_ids: (batch, time).
            attention_mask: (batch, at least time): 0 marks padding, which leaves the state untouched.
            inputs_embeds: (batch, time, hidden_size) in place of input_ids; it shows no document starts.
            state: (batch, layers, state_size) from an earlier call: the text goes on from there.
            use_cache: return the new state (on by default outside training).
            kwargs: `output_hidden_states` and `return_dict`, as everywhere in transformers.

        Raises:
            ValueError: both input_ids and inputs_embeds, or neither.
        """
        doc_starts = self.document_starts(input_ids, inputs_embeds)
        x = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        mask = padding(attention_mask, x.shape[1])
        if state is None:
            state = self.initial_state(x.shape[0])
        if torch.is_autocast_enabled(x.device.type) and self.config.recurrence == "parallel":
            # The residual stream: in float32 it is most of a step's traffic.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        shown = self.shows_hidden_states(kwargs.get("output_hidden_states"))
        seen = [x] if shown else None
        x, new_state = self._run_layers(self.dropout(x), state, doc_starts, mask, seen)
        keep = use_cache if use_cache is not None else not self.training
        return BackboneOutput(x, torch.stack(new_state, 1) if keep else None, tuple(seen) if shown else None)

    def _embed(self, input_ids: Tensor) -> Tensor:
        """(batch, time, hidden_size); straight in autocast's dtype where nothing else hangs on the table."""
        table, device = self.embed_tokens, input_ids.device.type
        if torch.is_autocast_enabled(device) and type(table) is nn.Embedding and not table._forward_hooks:
            if self.config.recurrence == "parallel":
                return token_embedding(input_ids, table.weight, torch.get_autocast_dtype(device))
        return table(input_ids)

    def _run_layers(
        self,
        x: Tensor,
        state: Tensor,
        doc_starts: Tensor | None,
        mask: Tensor | None,
        seen: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """x (batch, time, hidden_size) through the layers and the last norm; each layer's new state.

        `seen`: a list that gets what each layer leaves, the last one normed.
        """
        saves = self.gradient_checkpointing and self.training
        run = self._gradient_checkpointing_func if saves else lambda layer, *arguments: layer(*arguments)
        if self.config.recurrence == "sequential":
            x, layer_state = run(self.layers[0].__call__, x, state[:, 0], doc_starts, mask)
            if seen is not None:
                seen.append(x)
            return x, [layer_state]
        residual, new_state = None, []
        for index, layer in enumerate(self.layers):
            x, residual, layer_state = run(layer.__call__, x, residual, state[:, index], doc_starts, mask)
            new_state.append(layer_state)
            if saves:
                x, residual = x + residual, None  # one tensor to keep for the next layer, not two
            if seen is not None and index < len(self.layers) - 1:
                seen.append(x if residual is None else x + residual)
        x = add_norm(x, residual, self.norm.weight, self.norm.eps)[1]
        if seen is not None:
            seen.append(x)
        return x, new_state


class NewLLMForCausalLM(CausalLMWithState, NewLLMPreTrainedModel, GenerationMixin):
    """New-LLM with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.model = NewLLMModel(config)
        self.lm_head = nn.Linear(config.output_size, config.vocab_size, bias=False)
        self.post_init()

    def half_weights(self) -> list[str]:
        """Names of the parameters that are read in autocast's dtype alone, and may be given in it."""
        products = ("project.weight", "out.weight", "up.weight", "down.weight")
        if self.config.recurrence != "parallel":
            return []
        blocks = self.model.layers.named_parameters("model.layers")
        return [name for name, p in blocks if name.endswith(products) and p.requires_grad]
