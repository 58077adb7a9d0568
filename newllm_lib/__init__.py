"""New-LLM: train small language models, in Colab or anywhere.

Importing this package loads no torch and touches no GPU and no network; its parts load what they need when
used.
"""

__version__ = "0.2.0"
