"""Runs as files and processes: atomic folders, locks, status, background training, mirrors. No torch."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
