"""How a model speaks: sampling, continuations of a text, chat, and decoding token by token with a state.

Names are loaded when first used, so that importing the package costs nothing. In the terminal a run is talked
with by `chat.chat`.
"""

import importlib

_HOME = {
    "ChatSession": "chat",
    "Settings": "sampling",
    "complete": "generate",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
