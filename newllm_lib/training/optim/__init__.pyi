"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.training.optim.adafactor import Adafactor as Adafactor
from newllm_lib.training.optim.captured import (
    CapturedStep as CapturedStep,
    found_inf as found_inf,
    takes_recording as takes_recording,
)
from newllm_lib.training.optim.combined import (
    CombinedOptimizer as CombinedOptimizer,
    one_for_each as one_for_each,
)
from newllm_lib.training.optim.in_backward import OptimizerInBackward as OptimizerInBackward
from newllm_lib.training.optim.low_memory_muon import LowMemoryMuon as LowMemoryMuon
from newllm_lib.training.optim.muon import BatchedMuon as BatchedMuon
