"""The processes that train one run together: which of them this is, and how they wait for each other.

torchrun, `accelerate launch` and `newllm train --num_gpus` start them alike and number them (RANK of
WORLD_SIZE; LOCAL_RANK on its host). The first alone speaks and writes; what it finds on the disk, the others
are told.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.training import distributed

# set, to its pid, by `launch`, which holds the run for the processes it starts
LAUNCHED = "NEWLLM_LAUNCHED"
PATIENCE = datetime.timedelta(minutes=30)  # for a process that is alive and says nothing
_LOST = (  # what torch says when another process is gone
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Socket Timeout",
    "remote process exited",
    "NCCL communicator was aborted",
    "recvValue failed",
    "sendBytes failed",
    "Connection was likely closed",
)


class LostPeer(NewLLMError):
    """Another process of the run ended: its message is the cause."""


def world_size() -> int:
    """How many processes train this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of those on this host: also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """How many of them are on this host; as many on each."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_distributed() -> bool:
    """Whether this process is one of several (or the only one of a launcher that would start several)."""
    return world_size() > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def owns_run() -> bool:
    """Whether the run's lock, status and mirror are this process's: not under a launcher of ours."""
    return is_main_process() and LAUNCHED not in os.environ


def is_main_process() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def init_process_group(device: str) -> None:
    """Meet the others; each takes the GPU of its number. Nothing to do alone.

    Args:
        device: "cpu" or "cuda".

    Raises:
        NewLLMError: this host has fewer GPUs than processes.
    """
    if not is_distributed() or dist.is_initialized():
        return
    if device == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise NewLLMError(
                f"Process {rank()} has no GPU of its own (this host has {torch.cuda.device_count()}): start "
                "as many processes as there are GPUs."
            )
        torch.cuda.set_device(local_rank())
    backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
    place, number, count = distributed.rendezvous.rendezvous(PATIENCE)
    dist.init_process_group(backend, store=place, rank=number, world_size=count, timeout=PATIENCE)
    _host.append(dist.new_group(backend="gloo", timeout=PATIENCE) if device == "cuda" else dist.group.WORLD)


_host: list = []  # the group of all, once they have met


def host_group():
    """The group of all processes whose messages never touch a GPU."""
    return _host[-1]


def barrier() -> None:
    """Return when every process has come here. On the hosts' side: no GPU waits."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1), group=host_group())


def broadcast_object(value):
    """The first process's `value`, which must be plain data."""
    if not is_distributed():
        return value
    box = [value if is_main_process() else None]
    dist.broadcast_object_list(box, src=0, group=host_group())
    return box[0]


@contextmanager
def main_process_first(alone: bool) -> Iterator[None]:
    """Where `alone` is true the block runs first, and in all other processes when it is done there.

    For each host's first process, say, which fills the cache that the others read.
    """
    if is_distributed() and not alone:
        barrier()
    yield
    if is_distributed() and alone:
        barrier()


def seed_per_rank(seed: int, step: int) -> None:
    """Give this process random numbers (dropout's) of its own, from the run's seed and the step alone."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank()}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def all_reduce_mean_(tensor: torch.Tensor) -> None:
    """A tensor's mean over all processes, in place, where it lies."""
    dist.all_reduce(tensor)
    tensor.div_(world_size())


def all_reduce_sum_(tensors: list[torch.Tensor]) -> None:
    """Tensors' sums over all processes, in place, where they lie. Nothing to do alone."""
    if is_distributed():
        for tensor in tensors:
            dist.all_reduce(tensor)


def all_gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every process's tensor of this shape, in their order, where it lies."""
    found = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(found, tensor)
    return found


def broadcast_(tensors: Iterable[torch.Tensor]) -> None:
    """The first process's values, in place, where they lie. Nothing to do alone."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def all_reduce_sum(numbers: dict[str, float]) -> dict[str, float]:
    """Each number summed over all processes, in float64."""
    if not is_distributed():
        return numbers
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    dist.all_reduce(total, group=host_group())
    return {
        name: type(number)(all_reduce_sum_)
        for (name, number), all_reduce_sum_ in zip(numbers.items(), total.tolist(), strict=True)
    }


def gather_object(value) -> list:
    """Every process's `value` (plain data or CPU tensors) in order; in the first process only, else empty."""
    if not is_distributed():
        return [value]
    box = [None] * world_size() if is_main_process() else None
    dist.gather_object(value, box, dst=0, group=host_group())
    return box or []


@contextmanager
def reporting() -> Iterator[None]:
    """Tell the launcher what this process ended with, and say in one line where it ended because another had.

    Raises:
        LostPeer: instead of what torch makes of it.
    """
    if not is_distributed():
        yield
        return
    try:
        try:
            yield
        except RuntimeError as error:
            if not _speaks_of_a_peer(error):
                raise
            raise LostPeer(
                f"Process {rank()} of {world_size()} cannot go on: another one has ended (what it said "
                "stands beside this). The same command continues from the last save."
            ) from error
    except BaseException as error:
        get_error_handler().record_exception(_of_a_known_kind(error))
        raise


def _of_a_known_kind(error: BaseException) -> BaseException:
    """An error for the user as one of the few kinds that the launcher tells apart."""
    if isinstance(error, LostPeer) or not isinstance(error, NewLLMError):
        return error
    return {2: UsageError, 130: Interrupted}.get(error.exit_code, NewLLMError)(str(error))


def _speaks_of_a_peer(error: Exception) -> bool:
    kind, text = type(error).__name__, str(error)
    return kind in ("DistBackendError", "DistNetworkError") or any(words in text for words in _LOST)
