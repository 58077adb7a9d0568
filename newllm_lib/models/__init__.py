"""The models, as transformers models. Importing this registers them: `AutoModelForCausalLM.from_pretrained(run/best)` works."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from newllm_lib.models.build import build_model, count_parameters, load_model, matched_tiny_gpt2, model_config, parameters
from newllm_lib.models.new_llm import NewLLMConfig, NewLLMForCausalLM, NewLLMModel
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config, TinyGPT2ForCausalLM

AutoConfig.register("new_llm", NewLLMConfig, exist_ok=True)
AutoModel.register(NewLLMConfig, NewLLMModel, exist_ok=True)
AutoModelForCausalLM.register(NewLLMConfig, NewLLMForCausalLM, exist_ok=True)
AutoConfig.register("tiny_gpt2", TinyGPT2Config, exist_ok=True)
AutoModelForCausalLM.register(TinyGPT2Config, TinyGPT2ForCausalLM, exist_ok=True)

__all__ = [
    "NewLLMConfig", "NewLLMForCausalLM", "NewLLMModel", "TinyGPT2Config", "TinyGPT2ForCausalLM", "build_model",
    "count_parameters", "load_model", "matched_tiny_gpt2", "model_config", "parameters",
]  # fmt: skip
