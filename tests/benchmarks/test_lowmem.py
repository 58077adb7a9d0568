"""The benchmarks of 1.5 billion parameters and of what little memory costs in learning: limits, table, picture."""

import json

import pytest

from newllm_lib.benchmarks import lowmem_quality
from newllm_lib.benchmarks.train_1p5b import limit_of
from newllm_lib.benchmarks.ways_1p5b import OURS, PEERS


@pytest.mark.parametrize("way", [*OURS, *PEERS])
def test_a_limit_is_for_our_ways_that_keep_no_activations(way):
    assert limit_of(way, 8.0) == (8.0 if "sequences" in OURS.get(way, {}) else None)


def test_rows_stand_beside_the_reference_in_table_and_picture(tmp_path):
    rows, found = [lowmem_quality.REFERENCE, "Muon 4-bit"], []
    for row, factor in zip(rows, (1.0, 1.01), strict=True):
        folder = lowmem_quality.folder_of(row, tmp_path)
        folder.mkdir()
        lines = [{"step": step, "loss": factor * 100 / step} for step in (10, 20)] + [{"step": 20, "eval_loss": 5.0 * factor}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found.append({"row": row, "validation_loss": 5.0 * factor, "bits_per_byte": 2.0 * factor})
    assert "| Muon 4-bit | 5.0500 | +1.00 % | 2.0200 |" in lowmem_quality.table(found)
    lowmem_quality.draw(found, str(tmp_path), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
