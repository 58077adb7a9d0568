"""Runs as files and processes: folders written whole, locks, status, background training. Knows nothing of torch."""

from newllm_lib.runs.background import BACKGROUND, exit_code, follow, link_log, start_background, stop
from newllm_lib.runs.files import (
    WHOLE,
    atomic_write_bytes,
    atomic_write_text,
    clean_leftovers,
    explained,
    is_whole,
    missing_files,
    remove_directory,
    staged_directory,
)
from newllm_lib.runs.lock import AlreadyRunning, RunLock, is_locked, lock_holder
from newllm_lib.runs.run import Run, checkpoint_step, find_run, list_runs, roots
from newllm_lib.runs.status import last_line, read_status, read_status_file, tail, write_status

__all__ = [
    "BACKGROUND", "WHOLE", "AlreadyRunning", "Run", "RunLock", "atomic_write_bytes", "atomic_write_text",
    "checkpoint_step", "clean_leftovers", "exit_code", "explained", "find_run", "follow", "is_locked", "is_whole",
    "last_line", "link_log", "list_runs", "lock_holder", "missing_files", "read_status",
    "read_status_file", "remove_directory", "roots",
    "staged_directory", "start_background", "stop", "tail", "write_status",
]  # fmt: skip
