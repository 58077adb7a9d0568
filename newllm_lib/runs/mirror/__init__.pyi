"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.runs.mirror.hub_copy import HubCopy as HubCopy, copy_on_hub as copy_on_hub
from newllm_lib.runs.mirror.owner import claim_copy as claim_copy
from newllm_lib.runs.mirror.restore import bring_back as bring_back, is_ahead as is_ahead
from newllm_lib.runs.mirror.start import (
    mirror_status as mirror_status,
    start_mirror as start_mirror,
    wait_for_mirror as wait_for_mirror,
)
