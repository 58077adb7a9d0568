"""Text from a model: sampling, decoding, chat."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "chat": ["ChatSession"],
        "generate": ["complete"],
        "sampling": ["Settings"],
    },
)
