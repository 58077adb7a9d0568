"""One run trained by several processes.

`strategy` decides from the recipe how many there are and whether they share by DDP or FSDP2; `launch` starts
them on this machine (each is a `worker`); `process_group` is how they know and wait for each other,
`rendezvous` where they meet. `preflight` checks that all are about to do the same, `flag_sync` that all stop
and save at the same step. `fsdp` cuts a model up, and reads and writes its checkpoints.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
