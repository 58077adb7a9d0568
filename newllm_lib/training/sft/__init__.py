"""Instruction training of any base (`--base`) on dialogues, with its own tokenizer and chat template.

`run` is the order; `rows` cuts dialogues from packed tokens; `sft_task` is the trainer; `card` the page.
"""
