"""A trained model for others.

`folder` writes weights, tokenizer, recipe and card, and pushes them to the hub; `model_card` writes the card
from what the run recorded; `gguf` makes a file for llama.cpp.
"""
