"""New-LLM: train small language models, in Colab or anywhere.

Importing this package loads no torch and touches no GPU and no network; its parts load what they need when
used. The Python interface is `newllm_lib.api`:

    import newllm_lib as newllm

    run = newllm.train("demo", epochs=2)
"""

from newllm_lib.lazy import attach

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
