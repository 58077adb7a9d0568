"""Text from a model: reading, continuing and chatting, whatever the model carries between tokens.

`stateful` says what that is, and reads text with it; `sampling` chooses the next token; `decoding` continues
text a token at a time. On top of these, `generate` completes many prompts at once and `chat` keeps a
conversation.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
