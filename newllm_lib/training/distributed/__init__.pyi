"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.training.distributed import (
    flag_sync as flag_sync,
    fsdp as fsdp,
    launch as launch,
    process_group as process_group,
    rendezvous as rendezvous,
)
