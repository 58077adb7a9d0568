"""New-LLM: a language model with no attention, whose whole memory is a context vector of fixed size in each
block.

`NewLLMForCausalLM` is an ordinary transformers model: `from_pretrained`, `generate`, PEFT and TRL work on it.
Its state is one tensor (batch, layers, state_size), the same size after ten tokens and after ten million,
carried through `generate` in the output field `state`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from newllm_lib import layers
from newllm_lib.errors import NewLLMError
from newllm_lib.layers.context_block import ContextBlock, ContextVector, ShortConvolution
from newllm_lib.layers.document import document_starts, padding
from newllm_lib.models.causal_lm import CausalLMWithState
from newllm_lib.ops.add_norm import add_norm
from newllm_lib.ops.embedding import token_embedding


class NewLLMConfig(PreTrainedConfig):
    """Sizes of a New-LLM. `recurrence`: "parallel" (blocks of `layers.context_block`) or "sequential" (the
    original's equations, where `num_hidden_layers` is the depth of the per-token MLP and `mlp_size` its
    width). `time_scales`: how long the channels of a context vector remember at the start of training, "even"
    (4 to 150 tokens) or "multi" (groups from 1 to 4,096 tokens). `context_eps`: of the norm that reads the
    context vector. `mlp_conv`, `embedding_skip`: options of the blocks."""

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
        mlp_conv: bool = False,
        embedding_skip: bool = False,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        reset_at_bos: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.context_dim = context_dim
        self.mlp_size = mlp_size
        self.num_hidden_layers = num_hidden_layers
        self.conv_width = conv_width
        self.recurrence = recurrence
        self.time_scales = time_scales
        self.context_eps = context_eps
        self.mlp_conv = mlp_conv
        self.embedding_skip = embedding_skip
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.reset_at_bos = reset_at_bos
        if any(
            [kwargs.pop(f"word_{part}", None) for part in ("memory", "slots", "history", "trust")]
        ):  # 0.1.0's
            raise NewLLMError(
                "This model was trained with a memory of words (word_memory), which is gone since 0.2.0: "
                "commit 6e07e55 reads it."
            )
        super().__init__(tie_word_embeddings=tie_word_embeddings and recurrence == "parallel", **kwargs)

    @property
    def output_size(self) -> int:
        """Channels of what the head reads."""
        return self.hidden_size if self.recurrence == "parallel" else self.mlp_size


@dataclass
class NewLLMOutput(ModelOutput):
    """`last_hidden_state` (batch, time, output_size); `state` (batch, layers, state_size) float32."""

    last_hidden_state: torch.Tensor | None = None
    state: torch.Tensor | None = None


class NewLLMPreTrainedModel(PreTrainedModel):
    config_class = NewLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ContextBlock"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        if isinstance(module, ContextVector):
            init_context_vector(module, self.config.time_scales)
        if isinstance(module, ShortConvolution):
            init_taps(module.weight)
        if isinstance(module, ContextBlock):  # residual branches start small, as in GPT-2
            residual = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.context.out.weight, std=residual)
            init.normal_(module.mlp.down.weight, std=residual)
            if module.shares is not None:
                init.copy_(module.shares, torch.tensor([1.0, 0.0]))


def init_context_vector(module: ContextVector, time_scales: str = "even") -> None:
    """The parameters of a context vector that are no linear layers."""
    init_taps(module.conv)
    init.ones_(module.norm)
    # Time scales from 4 to 150 tokens: a gate of sigmoid(1) forgets in a few tokens, one of sigmoid(5) in
    # many.
    bias = torch.linspace(1.0, 5.0, module.context_dim)
    if time_scales == "multi":
        bias, loudness = multi_scale(module.context_dim)
        init.copy_(module.norm, loudness)
    init.copy_(module.forget_bias, bias)


def init_taps(weight: nn.Parameter) -> None:
    """Weights (channels, width) of a short convolution."""
    bound = 1 / math.sqrt(weight.shape[1])
    init.uniform_(weight, -bound, bound)


TIME_SCALE_GROUPS = (
    (1, 4),
    (8, 64),
    (64, 512),
    (512, 4096),
)  # tokens that a group's channels remember, from its first to its last


def multi_scale(context_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Forget biases (context_dim,) of groups with time scales from one to thousands of tokens, and read-out
    weights to match.

    A channel with time scale t keeps exp(-1 / t) of itself each token. What it writes shrinks with 1 - that,
    so what a slow channel holds is some sqrt(t) times quieter than a fast one's: the weights undo it, or the
    norm would drown it.
    """
    sizes = [len(part) for part in torch.arange(context_dim).tensor_split(len(TIME_SCALE_GROUPS))]
    scales = [
        torch.logspace(math.log2(a), math.log2(b), n, base=2.0)
        for (a, b), n in zip(TIME_SCALE_GROUPS, sizes, strict=True)
    ]
    keep = torch.exp(-1 / torch.cat(scales).double())
    spread = torch.sqrt((1 - keep) / (1 + keep))  # of a running mean of independent numbers
    return torch.logit(keep).float(), (spread.square().mean().sqrt() / spread).float()


class NewLLMModel(NewLLMPreTrainedModel):
    """Everything but the head: token ids (batch, time) -> hidden states (batch, time, output_size) and the
    new state.
    """

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

    @property
    def state_size(self) -> int:
        return self.layers[0].state_size

    def initial_state(self, batch: int) -> torch.Tensor:
        """The state before the first token: zeros (batch, layers, state_size), float32."""
        device = self.embed_tokens.weight.device
        return torch.zeros(batch, len(self.layers), self.state_size, device=device, dtype=torch.float32)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> NewLLMOutput:
        """
        Args:
            input_ids: (batch, time); or inputs_embeds (batch, time, hidden_size), in which no document starts
            are seen.
            attention_mask: (batch, at least time): 0 marks padding, which leaves the state untouched.
            state: (batch, layers, state_size) from an earlier call: the text goes on from there.
            use_cache: return the new state (on by default outside training).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, one of the two.")
        x = self._embedded(input_ids) if inputs_embeds is None else inputs_embeds
        doc_starts = None
        if input_ids is not None and self.config.reset_at_bos:
            doc_starts = document_starts(input_ids, self.config.bos_token_id)
        mask = padding(attention_mask, x.shape[1])
        if state is None:
            state = self.initial_state(x.shape[0])
        if torch.is_autocast_enabled(x.device.type) and self.config.recurrence == "parallel":
            x = x.to(
                torch.get_autocast_dtype(x.device.type)
            )  # the residual stream: in float32 it is most of a step's traffic
        x, new_state = self._through(self.dropout(x), state, doc_starts, mask)
        keep = use_cache if use_cache is not None else not self.training
        return NewLLMOutput(x, torch.stack(new_state, 1) if keep else None)

    def _embedded(self, ids):
        table = self.embed_tokens
        if (
            torch.is_autocast_enabled(ids.device.type)
            and type(table) is nn.Embedding
            and not table._forward_hooks
        ):
            if self.config.recurrence == "parallel":
                return token_embedding(ids, table.weight, torch.get_autocast_dtype(ids.device.type))
        return table(ids)

    def _through(self, x, state, doc_starts, mask):
        """x through the layers and the last norm; each layer's new state."""
        saves = self.gradient_checkpointing and self.training
        run = self._gradient_checkpointing_func if saves else lambda layer, *arguments: layer(*arguments)
        if self.config.recurrence == "sequential":
            x, layer_state = run(self.layers[0].__call__, x, state[:, 0], doc_starts, mask)
            return x, [layer_state]
        residual, new_state, shared = (
            None,
            [],
            (doc_starts, mask, x) if self.config.embedding_skip else (doc_starts, mask),
        )
        for index, layer in enumerate(self.layers):
            x, residual, layer_state = run(layer.__call__, x, residual, state[:, index], *shared)
            new_state.append(layer_state)
            if saves:
                x, residual = x + residual, None  # one tensor to keep for the next layer, not two
        return add_norm(x, residual, self.norm.weight, self.norm.eps)[1], new_state


class NewLLMForCausalLM(CausalLMWithState, NewLLMPreTrainedModel, GenerationMixin):
    """New-LLM with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.model = NewLLMModel(config)
        self.lm_head = nn.Linear(config.output_size, config.vocab_size, bias=False)
        self.post_init()

    def half_weights(self) -> list[str]:
        """Names of the parameters that are read in autocast's dtype alone, and may be given to the model in
        it.
        """
        products = ("project.weight", "out.weight", "up.weight", "down.weight")
        if self.config.recurrence != "parallel":
            return []
        blocks = self.model.layers.named_parameters("model.layers")
        return [name for name, p in blocks if name.endswith(products) and p.requires_grad]
