"""Preference pairs (prompt, preferred and rejected answer), made here in Japanese, from the hub or files.

`load_preferences` gives what a recipe names (`load_prompts`: the prompts alone, for GRPO), `generate` makes
Japanese pairs, `shortcuts` measures what could tell their better side without understanding it,
`encode_pairs` gives token ids.
"""

from newllm_lib.data.preferences.encode import EncodedPairs, encode_pairs
from newllm_lib.data.preferences.generate import generate, most_pairs
from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.preferences.shortcuts import shortcuts
from newllm_lib.data.preferences.sources import MADE_HERE, Preferences, load_preferences, load_prompts

__all__ = [
    "MADE_HERE",
    "EncodedPairs",
    "Pair",
    "Preferences",
    "encode_pairs",
    "generate",
    "load_preferences",
    "load_prompts",
    "most_pairs",
    "shortcuts",
]
