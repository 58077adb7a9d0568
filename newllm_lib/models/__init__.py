"""The models, as transformers models; importing registers them for `AutoModelForCausalLM`."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from newllm_lib.models.causal_lm import parameters
from newllm_lib.models.new_llm import NewLLMConfig, NewLLMForCausalLM, NewLLMModel
from newllm_lib.models.phase7 import Phase7Config, Phase7ForCausalLM, Phase7Model
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config, TinyGPT2ForCausalLM, TinyGPT2Model

AutoConfig.register("new_llm", NewLLMConfig, exist_ok=True)
AutoModel.register(NewLLMConfig, NewLLMModel, exist_ok=True)
AutoModelForCausalLM.register(NewLLMConfig, NewLLMForCausalLM, exist_ok=True)
AutoConfig.register("phase7", Phase7Config, exist_ok=True)
AutoModel.register(Phase7Config, Phase7Model, exist_ok=True)
AutoModelForCausalLM.register(Phase7Config, Phase7ForCausalLM, exist_ok=True)
AutoConfig.register("tiny_gpt2", TinyGPT2Config, exist_ok=True)
AutoModel.register(TinyGPT2Config, TinyGPT2Model, exist_ok=True)
AutoModelForCausalLM.register(TinyGPT2Config, TinyGPT2ForCausalLM, exist_ok=True)

__all__ = [
    "NewLLMConfig",
    "NewLLMForCausalLM",
    "NewLLMModel",
    "Phase7Config",
    "Phase7ForCausalLM",
    "Phase7Model",
    "TinyGPT2Config",
    "TinyGPT2ForCausalLM",
    "TinyGPT2Model",
    "parameters",
]
