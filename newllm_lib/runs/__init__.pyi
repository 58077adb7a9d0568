"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.runs.aliases import resolve_path as resolve_path
from newllm_lib.runs.atomic import (
    append_whole as append_whole,
    atomic_write_bytes as atomic_write_bytes,
    atomic_write_text as atomic_write_text,
    clean_leftovers as clean_leftovers,
    explained as explained,
    is_complete as is_complete,
    mark_folder as mark_folder,
    mark_in as mark_in,
    may_wait as may_wait,
    missing_files as missing_files,
    remove_directory as remove_directory,
    replace_directory as replace_directory,
    scratch_directory as scratch_directory,
    staged_directory as staged_directory,
    staged_file as staged_file,
)
from newllm_lib.runs.background import (
    ask_to_save as ask_to_save,
    exit_code as exit_code,
    follow as follow,
    start_background as start_background,
    stop as stop,
)
from newllm_lib.runs.gpu_lock import GpuBusy as GpuBusy, gpu_for as gpu_for
from newllm_lib.runs.lock import (
    AlreadyRunning as AlreadyRunning,
    RunLock as RunLock,
    is_locked as is_locked,
    lock_holder as lock_holder,
)
from newllm_lib.runs.mirror.archive import restore as restore, saved as saved
from newllm_lib.runs.mirror.daemon import mirror_in as mirror_in
from newllm_lib.runs.mirror.restore import bring_back as bring_back, is_ahead as is_ahead
from newllm_lib.runs.mirror.start import (
    mirror_status as mirror_status,
    start_mirror as start_mirror,
    wait_for_mirror as wait_for_mirror,
)
from newllm_lib.runs.mirror.sync import Mirror as Mirror
from newllm_lib.runs.outputs import (
    add_to_mark as add_to_mark,
    check_file as check_file,
    check_picture as check_picture,
    owned_directory as owned_directory,
    replaceable as replaceable,
)
from newllm_lib.runs.ownership import (
    MANIFEST as MANIFEST,
    MANIFESTS as MANIFESTS,
    MARK as MARK,
    check_plain_name as check_plain_name,
    check_shared as check_shared,
    manifest_path as manifest_path,
    read_json as read_json,
)
from newllm_lib.runs.processes import command_of as command_of
from newllm_lib.runs.run import (
    HUB as HUB,
    Run as Run,
    checkpoint_step as checkpoint_step,
    drive_folder as drive_folder,
    find_run as find_run,
    link_model as link_model,
    link_or_copy as link_or_copy,
    list_runs as list_runs,
    read_rows as read_rows,
    roots as roots,
)
from newllm_lib.runs.security import (
    check_checkpoint_dir as check_checkpoint_dir,
    safetensors_header as safetensors_header,
)
from newllm_lib.runs.status import (
    BACKGROUND as BACKGROUND,
    is_finished as is_finished,
    last_line as last_line,
    link_log as link_log,
    read_status as read_status,
    read_status_file as read_status_file,
    read_timing as read_timing,
    rotate_log as rotate_log,
    tail as tail,
    timing_in_words as timing_in_words,
    write_status as write_status,
)
