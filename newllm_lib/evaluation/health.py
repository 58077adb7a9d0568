"""Is the context vector alive? It must differ from token to token, or it says nothing about the text.

The original of this project watched only how close its vectors came to a fixed point, and so did not see that
they had all become the same one. Here the context vectors after many tokens of many places of the text are
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

_COLLAPSED_SPREAD = 0.01  # less than this share of what is carried differs between tokens
_COLLAPSED_RANK = 2.0  # what differs lies on about one line
_DEAD = 0.01  # a dimension that moves by less than this share of its layer's size
_NARROW = 256  # channels up to which the rank is that of 1,024 vectors, beyond that of 128


class ContextWatch:
    """`with ContextWatch(...) as seen:` picks context vectors out of forward passes that happen anyway.

    The same tokens whatever the batches are: those at every n-th place of the text. The vectors right after
    <|endoftext|> are left out: they are the same by design.

    Args:
        model: where it carries no context vector, nothing is picked.
        bos: id of <|endoftext|>.
        tokens: of the text.
    """

    def __init__(self, model, bos: int | None, tokens: int):
        self.dim = getattr(model.config, "context_dim", 0)
        self.layers = [m for m in model.modules() if hasattr(m, "watch")] if self.dim else []
        self.bos, self.every = bos, max(1, tokens // (1024 if self.dim <= _NARROW else 128))
        self.picked: list[list[Tensor]] = [[] for _ in self.layers]
        self.place = torch.zeros(0, dtype=torch.long)  # of the vectors to pick in the next pass

    def __enter__(self) -> ContextWatch:
        for layer, picked in zip(self.layers, self.picked, strict=True):
            layer.watch = partial(self._pick, picked)
        return self

    def __exit__(self, *error) -> None:
        for layer in self.layers:
            layer.watch = None

    def expect(self, ids: np.ndarray, offsets: np.ndarray) -> None:
        """The next pass reads these ids (rows, time), from there (-1: padding)."""
        if self.layers:
            kept = (offsets >= 0) & (ids != self.bos) & (offsets % self.every == 0)
            self.place = torch.from_numpy(np.flatnonzero(kept))

    def _pick(self, picked: list[Tensor], contexts: Tensor) -> None:
        self.place = self.place.to(contexts.device)
        picked.append(contexts.reshape(-1, self.dim).index_select(0, self.place))

    def begin(self) -> Callable[[], dict]:
        """Begin to compare what was picked; the function that is returned waits for `vector_health` of it."""
        if not self.layers:
            return dict
        if not self.picked[0]:
            return partial(vector_health, torch.zeros(0, len(self.layers), self.dim))
        vectors = torch.stack([torch.cat(picked) for picked in self.picked], 1)
        pool = ThreadPoolExecutor(1, thread_name_prefix="context health")
        found = pool.submit(_in_one_thread, vectors, torch.get_num_threads())
        pool.shutdown(wait=False)
        return found.result


def _in_one_thread(vectors: Tensor, threads: int) -> dict:
    """`vector_health` beside whatever else is done: LAPACK leaves Python's lock alone. They are small;
    with a thread for each core, in several processes, it waited for the others' threads for a minute.

    Args:
        threads: of this process; that many again afterwards.
    """
    torch.set_num_threads(1)
    try:
        return vector_health(vectors)
    finally:
        torch.set_num_threads(threads)


def vector_health(vectors: torch.Tensor) -> dict:
    """How much context vectors (samples, layers, dim) differ from each other.

    Returns:
        context_variance: mean over the dimensions of the variance across samples.
        context_spread: that variance as a share of the mean square (0: all vectors are one point).
        context_effective_rank: dimensions in use, exp of the entropy of the covariance's eigenvalues (Roy &
            Vetterli 2007).
        context_dead_share: share of the dimensions that hardly move. context_dim, and context_warning: one
        sentence if the vectors have collapsed, else None. Each is of the layer where it is worst; all are NaN
        with fewer than two samples or vectors that are no numbers.
    """
    samples, _, dim = vectors.shape
    if samples < 2 or not bool(torch.isfinite(vectors).all()):
        names = ("variance", "spread", "effective_rank", "dead_share")
        return {f"context_{n}": float("nan") for n in names} | {"context_dim": dim, "context_warning": None}
    vectors = vectors.transpose(0, 1)  # layers, samples, dim
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    square = vectors.square().mean((1, 2))
    centred = vectors - vectors.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    spread = torch.where(square > 0, variance.mean(1) / square, 0.0)
    dead = (variance.sqrt() <= _DEAD * square.sqrt().unsqueeze(1)).float().mean(1)
    worst = torch.stack([variance.mean(1).min(), spread.min(), dead.max()]).tolist()
    result = {
        "context_variance": worst[0],
        "context_spread": worst[1],
        "context_effective_rank": min(_effective_ranks(centred)),
        "context_dead_share": worst[2],
        "context_dim": dim,
    }
    return result | {"context_warning": _warning(result, samples)}


def _effective_ranks(centred: Tensor) -> list[float]:
    """Of each layer of centred (layers, samples, dim), from the smaller of the two matrices of products."""
    wide = centred.shape[2] > centred.shape[1]
    products = centred @ centred.mT if wide else centred.mT @ centred
    eigenvalues = torch.linalg.eigvalsh(products.cpu()).clamp_min(0)
    total = eigenvalues.sum(-1, keepdim=True)
    share = eigenvalues / total.clamp_min(1e-30)
    return torch.where(total[:, 0] > 0, torch.special.entr(share).sum(-1).exp(), 0.0).tolist()


def _warning(health: dict, samples: int) -> str | None:
    can_have_rank = min(samples, health["context_dim"]) >= 8
    if health["context_spread"] < _COLLAPSED_SPREAD:
        what = f"only {health['context_spread']:.2%} of it differs between tokens"
    elif can_have_rank and health["context_effective_rank"] < _COLLAPSED_RANK:
        what = f"it moves along {health['context_effective_rank']:.1f} of {health['context_dim']} dimensions"
    elif health["context_dead_share"] > 0.5:
        what = f"{health['context_dead_share']:.0%} of its dimensions never move"
    else:
        return None
    return (
        f"The context vector has collapsed: {what}. Lower --learning_rate, or start again with another "
        "--seed."
    )
