"""A run's second place: a copy that is kept up to date beside training, and brought back from."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "daemon": ["mirror_status", "start_mirror", "wait_for_mirror"],
        "restore": ["bring_back", "is_ahead"],
    },
)
