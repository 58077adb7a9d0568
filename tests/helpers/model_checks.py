"""Random ids, and a first step with TRL, for the tests of the models."""

from importlib import metadata

import torch
from transformers import AutoModelForCausalLM

VOCAB, BOS, PAD = 97, 0, 1


def text(batch, time, seed=0, documents=False):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, VOCAB, (batch, time), generator=generator)
    if documents:
        ids[torch.rand(batch, time, generator=generator) < 0.15] = BOS
    return ids


def first_preference_loss(model, folder) -> float:
    """Train two steps with TRL on small pairs of words."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(
        WordLevel({"<|endoftext|>": 0, "<|pad|>": 1, "<unk>": 2, "a": 3, "b": 4, "c": 5}, unk_token="<unk>")
    )
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
    )
    rows = {"prompt": ["a b", "b a c"] * 4, "chosen": [" c", " c c"] * 4, "rejected": [" a", " a b"] * 4}
    args = DPOConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
    )
    model.save_pretrained(folder / "base")
    load = lambda: AutoModelForCausalLM.from_pretrained(folder / "base")  # noqa: E731
    # Before 1.0 TRL makes its own reference only of classes that stand in transformers.
    reference = {"ref_model": load()} if metadata.version("trl").startswith("0.") else {}
    trainer = DPOTrainer(
        load(), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, **reference
    )
    trainer.train()
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row)
