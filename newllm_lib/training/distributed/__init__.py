"""Several processes that train one run: who they are, what is cut, how they are started."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, submodules=["flag_sync", "fsdp", "launch", "process_group", "rendezvous"]
)
