"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.api import (
    Model as Model,
    Run as Run,
    compare as compare,
    evaluate as evaluate,
    list_runs as list_runs,
    load as load,
    sft as sft,
    train as train,
)
from newllm_lib.errors import Interrupted as Interrupted, NewLLMError as NewLLMError, UsageError as UsageError

__version__: str
