"""Phase 7: hyperbolic attention for the near, a state-space branch for the far, tensor-train embedding.

Phase 8 is the same model with linear attention, by hyperbolic features, to all of the past (`attention`
"linear").

`Phase7ForCausalLM` is an ordinary transformers model: `from_pretrained`, `generate`, PEFT and TRL work on it.
Its state, the AR-SSM's and attention's (the last window of keys and values, or a sum of their products), is
one tensor (batch, layers, state_size), the same size after ten tokens and after ten million, carried through
`generate` in the output field `state`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.utils import can_return_tuple

from newllm_lib import layers
from newllm_lib.layers.context_block import ContextVector
from newllm_lib.layers.document import padding
from newllm_lib.layers.rotary import rotation
from newllm_lib.models.causal_lm import BackboneOutput, BackboneWithState, CausalLMWithState
from newllm_lib.models.initialization import init_context_vector, init_plain
from newllm_lib.ops.add_norm import add_norm


class Phase7Config(PreTrainedConfig):
    """Sizes of a Phase 7 model, and which of its parts it has.

    `attention`: "hyperbolic" (distance in the Poincaré ball) or "dot", both to the last `attention_window`
    tokens, or "linear" (products of `linear_features` hyperbolic features of each head, to all tokens
    before). `flash_attention`: never hold all scores. `ar_ssm`: with the state-space branch, of `context_dim`
    channels in `ssm_ranks` groups. `embedding`: "htt" (a tensor train of rank 2 `htt_rank`) or "dense".
    """

    model_type = "phase7"
    auto_map = {}  # trl reads it from every config

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 512,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        mlp_size: int = 1152,
        context_dim: int = 512,
        conv_width: int = 4,
        attention: str = "hyperbolic",
        attention_window: int = 128,
        linear_features: int = 64,
        flash_attention: bool = True,
        ar_ssm: bool = True,
        ssm_ranks: int = 16,
        embedding: str = "htt",
        htt_rank: int = 64,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        reset_at_bos: bool = True,
        bos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_size = mlp_size
        self.context_dim = context_dim if ar_ssm else 0
        self.conv_width = conv_width
        self.attention = attention
        self.attention_window = attention_window
        self.linear_features = linear_features
        self.flash_attention = flash_attention
        self.ar_ssm = ar_ssm
        self.ssm_ranks = ssm_ranks
        self.embedding = embedding
        self.htt_rank = htt_rank
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.reset_at_bos = reset_at_bos
        kwargs.pop("rank_cost", None)  # 0.1.0's: it was of training alone
        super().__init__(bos_token_id=bos_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)


class Phase7PreTrainedModel(PreTrainedModel):
    config_class = Phase7Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phase7Block"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if init_plain(module, std):
            return
        if isinstance(module, layers.TensorTrainEmbedding):
            for core in (module.first, module.second):
                init.normal_(core, std=module.core_std(std))
            for phase in (module.first_phase, module.second_phase):
                init.uniform_(phase, -math.pi, math.pi)
        elif isinstance(module, ContextVector):
            init_context_vector(module)
        elif isinstance(module, layers.LocalAttention) and module.kind == "hyperbolic":
            # scores as spread as those of q k / sqrt(dim)
            init.constant_(module.log_beta, 0.5 * math.log(module.head_dim))
            init.zeros_(module.log_curvature)
        elif isinstance(module, layers.LinearAttention):
            init.normal_(module.directions)  # evenly over the boundary
            init.constant_(module.log_beta, math.log(2) + 0.5 * math.log(module.head_dim))
            init.zeros_(module.log_curvature)
            init.copy_(module.forget.bias, module.first_forget_bias())
        elif isinstance(module, layers.Phase7Block):
            self._init_block(module)

    def _init_block(self, block: nn.Module) -> None:
        """What starts otherwise than its kind; after its parts, as transformers goes from leaves to root."""
        std = self.config.initializer_range
        # queries and keys of about unit length
        init.normal_(block.attention.project.weight, std=self.config.hidden_size**-0.5)
        if block.ssm is not None:
            init.normal_(block.ssm.out.weight, std=self.config.context_dim**-0.5)
            init.constant_(block.ssm.ranks.bias, 2.0)  # ranks are open at first
        # residual branches start small, as in GPT-2
        residual = std / math.sqrt(2 * self.config.num_hidden_layers)
        init.normal_(block.out.weight, std=residual)
        init.normal_(block.mlp.down.weight, std=residual)


class Phase7Model(BackboneWithState, Phase7PreTrainedModel):
    """Everything but the head: token ids (batch, time) -> hidden states (batch, time, hidden_size) and the
    new state.

    `curvature_factor` is what the curvature schedule has come to (1: the learned curvatures alone); it is
    saved with the weights.
    """

    def __init__(self, config: Phase7Config):
        super().__init__(config)
        if config.embedding == "htt":
            self.embed_tokens = layers.TensorTrainEmbedding(
                config.vocab_size, config.hidden_size, config.htt_rank
            )
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers.Phase7Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.register_buffer("curvature_factor", torch.ones(()))
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """
        Args:
            input_ids: (batch, time); or inputs_embeds (batch, time, hidden_size), in which no document starts
                are seen.
            attention_mask: (batch, at least time): 0 marks padding, wherever it stands: it is as if it were
                not there.
            state: (batch, layers, state_size) from an earlier call: the text goes on from there.
            use_cache: return the new state (on by default outside training).
            kwargs: `output_hidden_states` and `return_dict`, as everywhere in transformers.
        """
        doc_starts = self.document_starts(input_ids, inputs_embeds)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if torch.is_autocast_enabled(x.device.type):
            # the residual stream: in float32 it is most of a step's traffic
            x = x.to(torch.get_autocast_dtype(x.device.type))
        moved = _Moved.of(padding(attention_mask, x.shape[1]))
        x, doc_starts = moved.there(x), moved.doc_starts(doc_starts)
        output_final_state = use_cache if use_cache is not None else not self.training
        shown = self.shows_hidden_states(kwargs.get("output_hidden_states"))
        seen = [x] if shown else None
        x, state = self._blocks(self.dropout(x), state, doc_starts, moved.lengths, output_final_state, seen)
        x = add_norm(x, None, self.norm.weight, self.norm.eps)[1]
        hidden_states = tuple(moved.back(layer) for layer in (*seen[:-1], x)) if shown else None
        return BackboneOutput(moved.back(x), state, hidden_states)

    def _blocks(self, x, state, doc_starts, lengths, output_final_state: bool, seen: list | None = None):
        """All blocks: the new x and the new state (None without `output_final_state`); `seen` gets what each
        block leaves."""
        config = self.config
        turn = None
        if config.attention != "linear":
            behind = 0 if state is None else config.attention_window - 1
            turn = rotation(behind + x.shape[1], config.hidden_size // config.num_attention_heads, x.device)
        states = []
        for index, layer in enumerate(self.layers):
            arguments = (
                x,
                None if state is None else state[:, index],
                turn,
                doc_starts,
                lengths,
                self.curvature_factor,
                output_final_state,
            )
            if self.gradient_checkpointing and self.training:
                x, layer_state = self._gradient_checkpointing_func(layer.__call__, *arguments)
            else:
                x, layer_state = layer(*arguments)
            states.append(layer_state)
            if seen is not None:
                seen.append(x)
        return x, torch.stack(states, 1) if output_final_state else None


@dataclass
class _Moved:
    """Each row's padding moved to its end, where causality makes it harmless, and results moved back."""

    order: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @classmethod
    def of(cls, mask: torch.Tensor | None) -> _Moved:
        """mask: (batch, time) bool, False at padding; None: nothing is moved."""
        if mask is None:
            return cls()
        return cls(torch.argsort(~mask, dim=1, stable=True), mask, mask.sum(1))

    def there(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.order is None else _gathered(x, self.order)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.order is None else _gathered(x, self.order.argsort(1))

    def doc_starts(self, doc_starts: torch.Tensor | None) -> torch.Tensor | None:
        """No document starts in padding."""
        return (
            doc_starts
            if doc_starts is None or self.order is None
            else (doc_starts & self.mask).gather(1, self.order)
        )


def _gathered(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.gather(1, order) if x.ndim == 2 else x.gather(1, order.unsqueeze(-1).expand_as(x))


class Phase7ForCausalLM(CausalLMWithState, Phase7PreTrainedModel, GenerationMixin):
    """Phase 7 with its head, which is the embedding (or, untied, one of the same kind)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Phase7Config):
        super().__init__(config)
        self.model = Phase7Model(config)
        if config.embedding == "htt":
            self.lm_head = layers.TensorTrainHead(self.model.embed_tokens, config.tie_word_embeddings)
            self._tied_weights_keys = None  # a tied head has no parameters of its own
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        if self.config.embedding != "htt":
            return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(
                "A tensor-train embedding keeps its vocabulary: train with embedding dense to resize it "
                "later."
            )
        return self.model.embed_tokens

    def loss_of(
        self, outputs: BackboneOutput, labels: torch.Tensor, tokens: torch.Tensor | int | None
    ) -> torch.Tensor:
        if self.config.embedding == "htt":
            return self.lm_head.loss(outputs.last_hidden_state, labels, tokens)
        return super().loss_of(outputs, labels, tokens)
