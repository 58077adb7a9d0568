"""A memory of the words that a text has said, of fixed size: counts, and the last words themselves."""

from newllm_lib.layers.word_memory.counts import Said, Table, decay, history_of, newest_of
from newllm_lib.layers.word_memory.memory import Experience, WordMemory, WordSlots
from newllm_lib.layers.word_memory.state import WordState
from newllm_lib.ops.online_trust import Trust

__all__ = [
    "Experience", "Said", "Table", "Trust", "WordMemory", "WordSlots", "WordState", "decay", "history_of", "newest_of",
]  # fmt: skip
