"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.training import (
    adapters as adapters,
    cuda_graphs as cuda_graphs,
    distill as distill,
    model_config as model_config,
    report as report,
)
from newllm_lib.training.tasks import train as train
