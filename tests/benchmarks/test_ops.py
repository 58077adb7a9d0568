"""The table of operations: every way computes what ours computes, and its figures become rows."""

import json

import pytest
import torch

from benchmarks import ops
from benchmarks.common import read
from newllm_lib.cli import main

CPU = [(name, size) for name, operation in ops.OPERATIONS.items() for size in operation.small]


def value_of(way: ops.Way) -> torch.Tensor:
    torch.manual_seed(0)
    return way.function(*way.draw())


@pytest.mark.parametrize(
    ("name", "size"), [c for c in CPU if c[0] in ("gated_scan", "short_conv", "linear_attention")]
)
def test_ours_is_the_reference(name, size):
    torch.manual_seed(0)
    ways = ops.OPERATIONS[name].ways("cpu", torch.float32, *size)
    ours, *others = [value_of(way) for way in ways.values() if way.cpu]
    assert others
    for other in others:
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", ops.OPERATIONS["hyperbolic_attention"].small)
def test_the_peers_distance_is_ours(size):
    """The vectors' image in the ball, scaled by curvature 1, is where the eager peer takes its
    points from.
    """
    torch.manual_seed(0)
    ways = ops.OPERATIONS["hyperbolic_attention"].ways("cpu", torch.float32, *size)
    torch.testing.assert_close(value_of(ways["eager torch"]), value_of(ways[ops.OURS]), rtol=1e-3, atol=1e-3)


def test_dense_heads_agree():
    torch.manual_seed(0)
    ways = ops.OPERATIONS["head"].ways("cpu", torch.float32, *ops.OPERATIONS["head"].small[0])
    torch.testing.assert_close(value_of(ways["dense, fused"]), value_of(ways["dense, all logits"]))


def test_figures_become_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ops, "copy_bandwidth", lambda device: 1e10)
    out = tmp_path / "results.csv"
    assert main(["bench", "ops", "short_conv", "embedding", "--out", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(read(out)) == 16
    moved = [
        row
        for row in read(out)
        if row["metric"].startswith("bytes moved") and row["benchmark"] == "short convolution"
    ]
    batch, length, dim = ops.OPERATIONS["short_conv"].small[0]
    whole, rest = (
        batch * length * dim,
        dim * 4 + batch * 3 * dim,
    )  # float32: x and u twice, dx; taps and tail with theirs
    assert {float(row["value"]) for row in moved} == {4.0 * (5 * whole + 3 * rest)}
