"""A run's second copy, on Drive, in any other folder, or in a repository of the hub (`hub`).

`sync` keeps it up to date, `daemon` is the process that does so beside a training, which `start` starts, and
`owner` says whose copy it is; `copy` copies a folder
and reads it back; `restore` brings a run from there, `archive` also as a command and from a zip.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
