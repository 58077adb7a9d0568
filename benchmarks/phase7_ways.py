"""The ways to train 1.5 billion parameters that `phase7` measures: ours and those of known optimizers.

Each gives a model and a step on (BATCH, LENGTH + 1) token ids.
"""

from __future__ import annotations

LENGTH, BATCH, VOCABULARY = 1024, 16, 50304

# bits: of momentum. sequences: at a time in a block (None: all). offload: inputs wait on the host.
# micro, instead: nothing computed twice, gradients accumulated over micro-batches of so many.
# head: logits that exist at a time, where that is not the default.
# how: passes are replayed from CUDA graphs (the default), run as they are, or compiled.
OURS = {
    "lowest": dict(bits=4, sequences=4, offload=True),
    "lowest, 2 at a time": dict(bits=4, sequences=2, offload=True),
    "lowest, larger head": dict(bits=4, sequences=4, offload=True, head=1 << 27),
    "lowest, smaller head": dict(bits=4, sequences=4, offload=True, head=1 << 25),
    "no momentum": dict(bits=0, sequences=4, offload=True),
    "8-bit momentum": dict(bits=8, sequences=4, offload=True),
    "on the device": dict(bits=4, sequences=8, offload=False),
    "lowest, no graphs": dict(bits=4, sequences=4, offload=True, how="eager"),
    "lowest, compiled": dict(bits=4, sequences=4, offload=True, how="compiled"),
    "speed": dict(bits=8, micro=4),
    "speed, only gradients replayed": dict(bits=8, micro=4, how="half"),
}
PEERS = {
    "default": "float32, autocast to bf16, fused AdamW, checkpointing, 1 at a time",
    "bnb": "bf16, bitsandbytes AdamW8bit in the backward pass, checkpointing, Liger's loss, 16 at a time",
    "torchao": "bf16, torchao AdamW4bit with stochastic rounding, checkpointing, Liger's loss, 4 at a time",
}


def llama(layers: int | None = None):
    """The peers' model: 1.42 billion parameters in Llama's shape (or another depth)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    sizes |= dict(num_hidden_layers=layers) if layers else {}
    sizes |= dict(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=False)
    config = LlamaConfig(use_cache=False, **sizes)
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def phase7(layers: int | None = None):
    """Phase 7's recipe of 1.51 billion parameters (or another depth)."""
    import torch

    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import build_model

    keys = {"num_layers": layers} if layers else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return build_model(load_recipe("phase7_1.5b", {"sized_for": "h100", **keys}), VOCABULARY, device=device)


def loss_of(model, ids):
    """Mean cross-entropy of ids (sequences, LENGTH + 1), each token predicted from those before it."""
    from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy

    if not hasattr(model.model, "rotary_emb"):  # not the Llama, whose own loss would hold all logits
        return model(ids[:, :-1].contiguous(), shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden, model.lm_head.weight, ids[:, 1:])


def ours(device, build, bits: int, sequences=None, offload=False, micro=None, how="graphs", head=None):
    """(model, one step on (batch, LENGTH + 1) ids)."""
    from newllm_lib.training.memory.blocks import checkpoint_blocks
    from newllm_lib.training.memory.low_precision import build_light
    from newllm_lib.training.optim.adafactor import Adafactor

    model = build_light(build, device).train()
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim < 2) == thin],
            "weight_decay": 0.0 if thin else 0.1,
        }
        for thin in (False, True)
    ]
    stepper = Adafactor(groups, lr=1e-4, momentum_bits=bits)
    stepper.prepare()
    if micro is not None:
        return model, _accumulating(device, model, stepper, micro, how)
    passes = checkpoint_blocks(model, sequences, offload, how == "compiled", how == "graphs")
    if head is not None:
        model.lm_head.block_elements = head
    return model, _in_backward(device, model, stepper, passes)


def _in_backward(device, model, stepper, passes):
    import torch

    from newllm_lib.training.optim.in_backward import OptimizerInBackward

    inside = OptimizerInBackward(model, stepper, 1.0, passes)

    def step(ids):
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, ids)
        loss.backward()
        inside.finish()
        return loss.detach()

    return step


def _accumulating(device, model, stepper, micro: int, how: str):
    import torch

    from newllm_lib.training.cuda_graphs import StepGraph
    from newllm_lib.training.memory.blocks import find_blocks

    graph = StepGraph(model, device, torch.bfloat16) if how in ("graphs", "half") else None
    stepper.recorder = graph.recorder if how == "graphs" else None
    if how == "compiled":
        for block in find_blocks(model):
            block.forward = torch.compile(block.forward, dynamic=False)

    def gradients(part, tokens):
        if graph is not None:
            inputs = {"input_ids": part[:, :-1], "shift_labels": part[:, 1:], "num_items_in_batch": tokens}
            return graph(inputs, use_cache=False)[0]
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, part) * (part[:, 1:].numel() / tokens)
        loss.backward()
        return loss.detach()

    def step(ids):
        tokens = torch.full((), ids[:, 1:].numel(), device=device)
        loss = sum(gradients(part, tokens) for part in ids.split(micro))
        stepper.clip_norm(1.0)
        stepper.step()
        model.zero_grad()
        return loss

    return step


def peer(device, name: str):
    import torch
    import torch.nn.functional as F

    dtype = torch.float32 if name == "default" else torch.bfloat16
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = llama()
        torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer, micro, head = None, 4, None
    if name == "default":
        micro, optimizer = 1, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    else:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        head = LigerFusedLinearCrossEntropyLoss()
    if name == "bnb":
        micro = BATCH
        _step_each_with_bitsandbytes(model)
    elif name == "torchao":
        from torchao.optim import AdamW4bit

        optimizer = AdamW4bit(model.parameters(), lr=1e-4, bf16_stochastic_round=True)

    def loss_of_part(part):
        if head is None:
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(part[:, :-1]).logits
                return F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten())
        hidden = model.model(part[:, :-1]).last_hidden_state
        return head(model.lm_head.weight, hidden.reshape(-1, hidden.shape[-1]), part[:, 1:].reshape(-1))

    def step(ids):
        total = 0.0
        for part in ids.split(micro):
            loss = loss_of_part(part) * (micro / len(ids))
            loss.backward()
            total += loss.detach()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        return total

    return model, step


def _step_each_with_bitsandbytes(model) -> None:
    """An optimizer for each parameter, which steps it in the backward pass."""
    import bitsandbytes

    optimizers = {p: bitsandbytes.optim.AdamW8bit([p], lr=1e-4) for p in model.parameters()}

    def at_once(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(at_once)
