"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.data.blocks import training_blocks as training_blocks
from newllm_lib.data.prepared import (
    PreparedData as PreparedData,
    load_split as load_split,
    prepare as prepare,
    prepare_dialogues as prepare_dialogues,
)
from newllm_lib.data.records import DataReport as DataReport
from newllm_lib.data.show import DataSample as DataSample, look as look
