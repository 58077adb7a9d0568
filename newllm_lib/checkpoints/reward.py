"""Reward models: a causal model's backbone with a head that gives a text one number."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib.checkpoints.load import LoadedModel, load_model, one_line, tokenizer_in
from newllm_lib.checkpoints.location import ModelLocation, base_of, check_model_folder, is_adapter, locate
from newllm_lib.errors import NewLLMError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def as_reward_model(model: PreTrainedModel, pad_token_id: int) -> PreTrainedModel:
    """A causal model's backbone, not copied, under a fresh head with one output, as
    `AutoModelForSequenceClassification` makes it.

    Args:
        pad_token_id: what is no text at the end of a row.

    Raises:
        NewLLMError: transformers has no such model of this kind.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    import newllm_lib.models.sequence_classification  # noqa: F401  makes our models known

    config = copy.deepcopy(model.config)
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is None:
        raise NewLLMError(
            f"{model.name_or_path} cannot become a reward model: transformers has no sequence "
            f"classification for {config.model_type}. Name another --base."
        )
    config.num_labels, config.pad_token_id, config.architectures = 1, pad_token_id, [kind.__name__]
    with torch.device("meta"):
        reward = kind(config)
    backbone = reward.base_model_prefix
    for name, child in reward.named_children():
        if name != backbone:
            child.to_empty(device=model.device).to(model.dtype)
            child.apply(reward._init_weights)
    setattr(reward, backbone, model.base_model)
    reward.name_or_path = config._name_or_path = model.name_or_path
    return reward.eval()


def load_reward_model(
    model: str | Path | ModelLocation, which: str = "best", *, device: str | torch.device | None = None
) -> LoadedModel:
    """A reward model that `newllm train reward` made.

    Raises:
        UsageError: there is no such run, or it is none.
        NewLLMError: it is not whole, or its base is gone.
    """
    from transformers import AutoModelForSequenceClassification

    import newllm_lib.models.sequence_classification  # noqa: F401  makes our models known

    location = model if isinstance(model, ModelLocation) else locate(model, which)
    recipe = location.recipe()
    if location.folder is None or recipe is None or recipe.task != "reward":
        raise UsageError(f"{location.name} is no reward model: name a run of `newllm train reward`.")
    folder = location.folder
    check_model_folder(folder)
    tokenizer = tokenizer_in(folder, str(folder))
    with one_line(str(folder)):
        if is_adapter(folder):
            import torch.distributed.tensor  # noqa: F401  # peft uses it and does not import it
            from peft import PeftModel

            base = as_reward_model(load_model(base_of(folder)).model, tokenizer.pad_token_id)
            reward = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
        else:
            reward = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
    reward = reward.eval().to(device) if device else reward.eval()
    return LoadedModel(reward, tokenizer, recipe, folder, location)
