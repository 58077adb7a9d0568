"""FSDP2: each process keeps rows of all weights, gradients and states; a block is whole while it works.

On several hosts each host has the whole model in its GPUs, where that fits: weights are then fetched inside
the host.

torch's `fully_shard`, block by block. What is ours: evaluation and sampling with all weights whole for a
while, and checkpoints. Every process writes its rows into the same safetensors files, so they are sharded in
the writing and whole for the reader: users load `model.safetensors`, and any other number of processes, or
one, finds its own rows in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from newllm_lib.errors import NewLLMError
from newllm_lib.training.distributed import process_group
from newllm_lib.training.memory.blocks import find_blocks
from newllm_lib.training.saving import together

OPTIMIZER = "optimizer.safetensors"


def apply_fsdp(model: nn.Module, device: torch.device, parts: int, compiled: bool) -> nn.Module:
    """Cut a model, the same in every process, into `parts`; in place.

    Args:
        parts: as many as there are processes, or as a host has: then each host has all parts, and only
            gradients go between them.
        compiled: compile each block's forward (not what fetches its weights).
    """
    model.to(device)
    blocks = find_blocks(model)
    if compiled:
        for block in blocks:
            block.forward = torch.compile(block.forward, dynamic=False)
    copies = process_group.world_size() // parts
    shape, names = ((parts,), ("part",)) if copies == 1 else ((copies, parts), ("copy", "part"))
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    # made from one seed; that different CPUs agree is not left to chance
    process_group.broadcast_(model.parameters())
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def full_tensor(value):
    """A gradients' norm that is cut, as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def plain_class(model: nn.Module) -> type:
    """The model's class, which `fully_shard` replaces by one of its own."""
    return next(
        kind for kind in type(model).__mro__ if kind is not FSDPModule and not issubclass(kind, FSDPModule)
    )


@contextmanager
def summon_full_params(model: nn.Module) -> Iterator[None]:
    """Within it each process has all weights and may use the model as it likes. All must enter."""
    if not is_sharded(model):
        yield
        return
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            # the root's are needed first in the backward pass
            group.set_reshard_after_forward(group is not model, recurse=False)


# --- files
# ------------------------------------------------------------------------------------------------------------

_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.float64: "F64",
}


def save_weights(model: nn.Module, folder: Path) -> None:
    """`model.safetensors` and the configuration, for `from_pretrained`. All processes call it."""
    tensors = dict(model.named_parameters())
    saved = model.state_dict().keys()
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    write_together(tensors, folder / "model.safetensors", {"format": "pt"})
    if process_group.is_main_process():
        model.config.architectures = [plain_class(model).__name__]
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """This process's rows of the weights saved in a folder, in one file or several."""
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != OPTIMIZER:
            _read(path, {name: tensor for name, tensor in wanted.items()})


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """The state of an AdamW, by the parameters' names. All processes call it."""
    tensors = {
        f"{key}/{name}": value for name, state in _states(optimizer, model) for key, value in state.items()
    }
    rates = [
        {key: group[key] for key in ("lr", "initial_lr") if key in group} for group in optimizer.param_groups
    ]
    write_together(tensors, folder / OPTIMIZER, {"groups": json.dumps(rates)})


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """What `save_optimizer` wrote, for any number of processes; or a whole model's `optimizer.pt`."""
    if (folder / OPTIMIZER).is_file():
        _load_by_name(optimizer, model, folder / OPTIMIZER)
    else:
        _load_whole(optimizer, folder / "optimizer.pt")


def _load_by_name(optimizer, model, path: Path) -> None:
    with safe_open(path, "pt") as file:
        names, rates = set(file.keys()), json.loads(file.metadata()["groups"])
    if len(rates) != len(optimizer.param_groups):
        raise NewLLMError(
            f"{path} is another optimizer's state: copy the checkpoint again from where it was trained."
        )
    for group, values in zip(optimizer.param_groups, rates, strict=True):
        group.update(values)
    wanted = {}
    for name, p in model.named_parameters():
        if f"exp_avg/{name}" in names:
            state = optimizer.state[p] = {
                key: torch.zeros_like(p.detach()) for key in ("exp_avg", "exp_avg_sq")
            }
            state["step"] = torch.zeros(
                (), device=p.device if optimizer.param_groups[0].get("fused") else "cpu"
            )
            wanted |= {f"{key}/{name}": value for key, value in state.items()}
    _read(path, wanted)


def _load_whole(optimizer, path: Path) -> None:
    """Of the state that one process, or DDP's first one, has saved, this process's rows."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group, values in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: values[key] for key in ("lr", "initial_lr") if key in values})
    for index, state in saved["state"].items():
        p = parameters[int(index)]
        own = optimizer.state[p] = {}
        for key, value in state.items():
            if key == "step":
                own[key] = value.to(p.device) if optimizer.param_groups[0].get("fused") else value
            else:
                own[key] = torch.zeros_like(p.detach())
                begin, end = _rows(own[key])
                _local(own[key]).copy_(value[begin:end] if isinstance(own[key], DTensor) else value)


def _states(optimizer, model) -> Iterator[tuple[str, dict]]:
    for name, p in model.named_parameters():
        if p in optimizer.state:
            yield name, optimizer.state[p]


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _rows(tensor: Tensor) -> tuple[int, int]:
    """The first dimension's range that this process has."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.shape[0] if tensor.ndim else 1
    mesh = tensor.device_mesh  # its last dimension is that of the parts
    count = -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))  # as torch.chunk cuts
    begin = min(mesh.get_local_rank(mesh.ndim - 1) * count, tensor.shape[0])
    return begin, begin + _local(tensor).shape[0]


def _is_ours(tensor: Tensor) -> bool:
    """Whether this process writes what it has of a tensor: others may have the same."""
    if not isinstance(tensor, DTensor):
        return process_group.is_main_process()
    mesh = tensor.device_mesh
    return mesh.ndim == 1 or mesh.get_local_rank(0) == 0


def write_together(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write sharded tensors into one safetensors file, each process its own rows. All must call it.

    Tensors that are not cut are the first process's.
    """
    header, begin = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + size],
        }
        begin += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def begin_file() -> None:
        if process_group.is_main_process():
            with open(path, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + begin)

    def write_rows() -> None:
        with open(path, "r+b") as file:
            for name, tensor in tensors.items():
                if _is_ours(tensor):
                    size = tensor.numel() * tensor.element_size()
                    row = size // max(1, tensor.shape[0]) if tensor.ndim else 0
                    file.seek(8 + len(text) + header[name]["data_offsets"][0] + _rows(tensor)[0] * row)
                    file.write(_local(tensor).contiguous().reshape(-1).view(torch.uint8).cpu().numpy())

    together(path, begin_file)
    together(path, write_rows)


@torch.no_grad()
def _read(path: Path, wanted: dict[str, Tensor]) -> None:
    """Fill what a file holds of `wanted`, by name: of each tensor the rows that this process has."""
    with safe_open(path, "pt") as file:
        for name in file.keys():
            if name not in wanted:
                continue
            tensor = wanted[name]
            if isinstance(tensor, DTensor):
                begin, end = _rows(tensor)
                if begin < end:  # a tensor with few rows has none for the last processes
                    _local(tensor).copy_(file.get_slice(name)[begin:end])
            else:
                tensor.copy_(file.get_tensor(name))
