"""Blocks and their order."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from newllm_lib.data import prepare
from newllm_lib.data.blocks import IGNORED, Blocks, BlockSampler, ContiguousBatchSampler
from newllm_lib.errors import NewLLMError
from tests.helpers.texts import dialogues, write_jsonl


def stream(tokens: int, mask: np.ndarray | None = None, dtype="uint16") -> SimpleNamespace:
    """A packed split whose token at i is i."""
    from pathlib import Path

    return SimpleNamespace(
        ids=np.arange(tokens, dtype=dtype), tokens=tokens, loss_mask=mask, path=Path("train-0")
    )


def loader(split, length, batch_size, sampler, **options):
    blocks = Blocks(split, length, **options)
    return DataLoader(blocks, batch_size=batch_size, sampler=sampler, collate_fn=lambda batch: batch)


@pytest.mark.parametrize("tokens", [9, 10, 16, 17, 18, 100, 101])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_in_order_every_token_but_the_first_is_predicted_once(tokens, batch_size):
    split = stream(tokens)
    labels = []
    for batch in loader(split, 8, batch_size, BlockSampler(split, 8, batch_size, seed=0, shuffle=False)):
        assert batch["input_ids"].shape == batch["labels"].shape and batch["input_ids"].shape[1] == 8
        counted = batch["labels"] != IGNORED
        assert (batch["labels"][counted] == batch["input_ids"][counted] + 1).all()  # shifted by one
        labels += batch["labels"][counted].tolist()
    assert labels == list(range(1, tokens))


@pytest.mark.parametrize("length", [5, 16, 64, 1000])
def test_every_turn_and_every_speaker_is_learned_whatever_the_blocks_length(tmp_path, recipe, cache, length):
    chats = dialogues(300)
    write_jsonl(tmp_path / "train.jsonl", [{"messages": m} for m in chats])
    data = prepare(recipe(data_dir=tmp_path), cache)
    turns = {role: sum(m["role"] == role for chat in chats for m in chat) for role in ("user", "assistant")}
    learned = []
    for split in (data.train, data.validation, data.test):
        shorter = min(length, split.tokens - 1)
        for start in BlockSampler(split, shorter, 1, seed=0, shuffle=False):
            labels = Blocks(split, shorter)[start]["labels"]
            learned += labels[labels >= 0].tolist()
    text = data.tokenizer.decode(learned)
    assert {role: text.count(f"<|{role}|>") for role in turns} == turns and min(turns.values()) > 400
    assert text.count("<|end|>") == sum(turns.values()) and text.count("<|endoftext|>") == len(chats)
    assert all(m["content"] in text for chat in chats for m in chat)


def test_labels_are_shifted_and_batches_are_the_items():
    split = stream(100)
    blocks = Blocks(split, 5)
    batch = blocks.__getitems__([0, 7, 94])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11], [94, 95, 96, 97, 98]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4, 5], [8, 9, 10, 11, 12], [95, 96, 97, 98, 99]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    for row, start in enumerate([0, 7, 94]):
        item = blocks[start]
        assert all(torch.equal(item[name], batch[name][row]) for name in batch)


def test_past_the_end_nothing_is_predicted():
    batch = Blocks(stream(10), 4).__getitems__([7])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 9]] and batch["labels"].tolist() == [
        [8, 9, IGNORED, IGNORED]
    ]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_device_the_blocks_are_the_same(masked, dtype):
    mask = (np.arange(50) % 3 == 0).astype(np.uint8) if masked else None
    split = stream(50, mask, dtype)
    starts = [0, 3, 41, 44, 48]
    here, there = Blocks(split, 8).__getitems__(starts), Blocks(split, 8, device="cpu").__getitems__(starts)
    assert all(torch.equal(here[name], there[name]) for name in here)
    if masked:
        assert (
            here["labels"][0] == torch.tensor([IGNORED, IGNORED, 3, IGNORED, IGNORED, 6, IGNORED, IGNORED])
        ).all()


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_is_whole_batches_of_separate_blocks():
    split = stream(1003)
    sampler = BlockSampler(split, 10, 8, seed=1)
    for number in range(20):
        starts = epoch(sampler, number)
        assert len(starts) == len(sampler) == 96  # 99 blocks at any offset, in batches of 8
        assert len({s % 10 for s in starts}) == 1 and len(set(starts)) == len(
            starts
        )  # one offset, no block twice
        assert min(starts) >= 0 and max(starts) + 10 < 1003
        assert starts != sorted(starts)
    assert (
        len({epoch(sampler, number)[0] % 10 for number in range(40)}) > 5
    )  # offsets change from epoch to epoch


def test_the_order_depends_on_seed_and_epoch_alone():
    split = stream(1000)
    first = BlockSampler(split, 10, 4, seed=1)
    for _ in range(5):
        list(first)
    again = BlockSampler(split, 10, 4, seed=1)
    assert epoch(first, 3) == epoch(again, 3)
    assert epoch(first, 3) != epoch(first, 4) != epoch(BlockSampler(split, 10, 4, seed=2), 4)
    assert epoch(first, 0)[:3] == [
        564,
        84,
        164,
    ]  # and never changes: an interrupted run must go on in its order


def test_too_short_a_split_names_the_option():
    with pytest.raises(
        NewLLMError, match="train split has 8 tokens, fewer than one block of 8.*--max_seq_length to 7"
    ):
        Blocks(stream(8), 8)
    with pytest.raises(NewLLMError, match="--max_seq_length"):
        BlockSampler(stream(8), 8, 1, seed=0, shuffle=False)
    assert len(BlockSampler(stream(9), 8, 1, seed=0, shuffle=False)) == 1
    with pytest.raises(NewLLMError, match="9 blocks of 10, fewer than one batch of 16. Lower --batch_size"):
        BlockSampler(stream(101), 10, 16, seed=0)


@pytest.mark.gpu
def test_on_a_gpu():
    split = stream(5000)
    here, there = (
        Blocks(split, 8).__getitems__([0, 4995]),
        Blocks(split, 8, device="cuda").__getitems__([0, 4995]),
    )
    assert all(there[name].is_cuda and torch.equal(here[name], there[name].cpu()) for name in here)


def test_rows_go_on_where_they_ended_and_see_every_block_once():
    split = stream(1000)
    sampler = ContiguousBatchSampler(split, 16, 4, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        starts = list(sampler)
        assert len(starts) == len(sampler) and len(set(starts)) == len(starts) and max(starts) + 16 <= 999
        rows = [starts[row::4] for row in range(4)]
        jumps = sum(b - a != 16 for one in rows for a, b in zip(one[:-1], one[1:], strict=True))
        assert jumps <= 1  # the end of the stream
        orders.append(starts)
    assert orders[0] == orders[2] != orders[1]
