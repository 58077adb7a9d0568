"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.data.streaming.segments import LargeSource as LargeSource
from newllm_lib.data.streaming.stream import StreamedSplit as StreamedSplit
