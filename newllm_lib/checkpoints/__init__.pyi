"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.checkpoints.load import (
    LoadedModel as LoadedModel,
    ModelOutline as ModelOutline,
    base_sizes as base_sizes,
    load_model as load_model,
    outline as outline,
    whole_model_folder as whole_model_folder,
)
from newllm_lib.checkpoints.location import (
    ModelLocation as ModelLocation,
    is_adapter as is_adapter,
    locate as locate,
)
from newllm_lib.checkpoints.reward import (
    as_reward_model as as_reward_model,
    load_reward_model as load_reward_model,
)
from newllm_lib.checkpoints.save import save_model as save_model
