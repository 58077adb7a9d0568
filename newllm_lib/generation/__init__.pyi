"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.generation.chat import ChatSession as ChatSession
from newllm_lib.generation.generate import complete as complete
from newllm_lib.generation.sampling import Settings as Settings
