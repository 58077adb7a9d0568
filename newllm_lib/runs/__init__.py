"""Runs as files and processes: folders written whole, locks, status, background training, mirrors. Knows
nothing of torch.
"""

from newllm_lib.runs.aliases import resolve_path
from newllm_lib.runs.atomic import (
    add_to_mark,
    atomic_write_bytes,
    atomic_write_text,
    clean_leftovers,
    explained,
    is_complete,
    mark_folder,
    mark_in,
    missing_files,
    owned_directory,
    remove_directory,
    replace_directory,
    scratch_directory,
    staged_directory,
)
from newllm_lib.runs.background import (
    BACKGROUND,
    ask_to_save,
    exit_code,
    follow,
    link_log,
    rotate_log,
    start_background,
    stop,
)
from newllm_lib.runs.gpu_lock import GpuBusy, gpu_for
from newllm_lib.runs.lock import AlreadyRunning, RunLock, is_locked, lock_holder
from newllm_lib.runs.mirror.daemon import mirror_status, start_mirror, wait_for_mirror
from newllm_lib.runs.mirror.restore import bring_back, is_ahead, restore, saved
from newllm_lib.runs.mirror.sync import Mirror
from newllm_lib.runs.ownership import (
    MANIFEST,
    MANIFESTS,
    MARK,
    check_file,
    check_plain_name,
    check_shared,
    manifest_path,
    replaceable,
)
from newllm_lib.runs.run import Run, checkpoint_step, drive_folder, find_run, link_model, list_runs, roots
from newllm_lib.runs.security import check_checkpoint_dir, safetensors_header
from newllm_lib.runs.status import is_finished, last_line, read_status, read_status_file, tail, write_status

__all__ = [
    "BACKGROUND",
    "MARK",
    "MANIFEST",
    "MANIFESTS",
    "AlreadyRunning",
    "GpuBusy",
    "Mirror",
    "Run",
    "RunLock",
    "add_to_mark",
    "ask_to_save",
    "atomic_write_bytes",
    "atomic_write_text",
    "bring_back",
    "check_file",
    "check_checkpoint_dir",
    "check_plain_name",
    "check_shared",
    "checkpoint_step",
    "clean_leftovers",
    "drive_folder",
    "exit_code",
    "explained",
    "find_run",
    "follow",
    "resolve_path",
    "gpu_for",
    "is_ahead",
    "is_finished",
    "is_locked",
    "is_complete",
    "last_line",
    "link_log",
    "link_model",
    "list_runs",
    "lock_holder",
    "manifest_path",
    "mark_folder",
    "mark_in",
    "mirror_status",
    "missing_files",
    "owned_directory",
    "read_status",
    "read_status_file",
    "remove_directory",
    "replace_directory",
    "replaceable",
    "restore",
    "roots",
    "rotate_log",
    "saved",
    "scratch_directory",
    "staged_directory",
    "start_background",
    "start_mirror",
    "stop",
    "tail",
    "safetensors_header",
    "wait_for_mirror",
    "write_status",
]
