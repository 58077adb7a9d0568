"""Data sets too large to be prepared before training: cut into segments, packed by processes of their own
while training runs.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "segments": ["LargeSource"],
        "stream": ["StreamedSplit"],
    },
)
