"""Runs as files and processes: atomic folders, locks, status, background training, mirrors. No torch."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "aliases": ["resolve_path"],
        "atomic": [
            "add_to_mark",
            "atomic_write_bytes",
            "atomic_write_text",
            "clean_leftovers",
            "explained",
            "is_complete",
            "mark_folder",
            "mark_in",
            "missing_files",
            "owned_directory",
            "remove_directory",
            "replace_directory",
            "scratch_directory",
            "staged_directory",
        ],
        "background": [
            "BACKGROUND",
            "ask_to_save",
            "exit_code",
            "follow",
            "link_log",
            "rotate_log",
            "start_background",
            "stop",
        ],
        "gpu_lock": ["GpuBusy", "gpu_for"],
        "lock": ["AlreadyRunning", "RunLock", "is_locked", "lock_holder"],
        "mirror.daemon": ["mirror_status", "start_mirror", "wait_for_mirror"],
        "mirror.restore": ["bring_back", "is_ahead", "restore", "saved"],
        "mirror.sync": ["Mirror"],
        "ownership": [
            "MANIFEST",
            "MANIFESTS",
            "MARK",
            "check_file",
            "check_plain_name",
            "check_shared",
            "manifest_path",
            "replaceable",
        ],
        "run": ["Run", "checkpoint_step", "drive_folder", "find_run", "link_model", "list_runs", "roots"],
        "security": ["check_checkpoint_dir", "safetensors_header"],
        "status": ["is_finished", "last_line", "read_status", "read_status_file", "tail", "write_status"],
    },
)
