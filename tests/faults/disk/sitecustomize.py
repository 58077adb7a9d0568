"""Put this folder on PYTHONPATH and writing below FAULTY_FOLDER goes wrong as the file FAULT says, from one
write to the next.

full, read-only, gone, slow, stuck, partial (half of what was written arrives) or wrong (another byte); empty:
all is well. "clock back": the wall clock says 30 s less.
"""

from __future__ import annotations

import builtins
import errno
import os
import time
from pathlib import Path

import newllm_lib.runs.mirror.daemon as mirroring

FOLDER = os.environ["FAULTY_FOLDER"]
mirroring.FIRST_WAIT = mirroring.LONGEST_WAIT_AT_END = 0.2
real_open, real_mkdir, real_replace = builtins.open, os.mkdir, os.replace
real_time = time.time


def fault() -> str:
    with real_open(os.environ["FAULT"]) as file:
        return file.read()


def fail_to_change(path) -> None:
    """What a disk says to a new name."""
    number = {"read-only": errno.EROFS, "gone": errno.ENOTCONN}.get(fault())
    if number and str(path).startswith(FOLDER):
        raise OSError(number, os.strerror(number))


class Faulty:
    """A file open for writing on that disk."""

    def __init__(self, file):
        self.file, self.written = file, 0

    def write(self, data) -> int:
        how, size = fault(), len(data)
        self.written += size
        if how == "full" and self.written > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "gone" and self.written > 2000:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if how == "slow":
            time.sleep(0.3)
        while fault() == "stuck":
            time.sleep(0.05)
        if how == "partial" and isinstance(data, bytes):
            data = data[: size // 2]
        if how == "wrong" and isinstance(data, bytes) and size:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.file.write(data)
        return size

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)


def faulty_open(path, mode="r", *arguments, **options):
    if not isinstance(path, (str, Path)) or not str(path).startswith(FOLDER) or not set("wax+") & set(mode):
        return real_open(path, mode, *arguments, **options)
    fail_to_change(path)
    return Faulty(real_open(path, mode, *arguments, **options))


def faulty_mkdir(path, *arguments, **options):
    fail_to_change(path)
    return real_mkdir(path, *arguments, **options)


def faulty_replace(source, target, **options):
    fail_to_change(target)
    return real_replace(source, target, **options)


time.time = lambda: real_time() - (30 if fault() == "clock back" else 0)
time.time = lambda: real_time() - (30 if fault() == "clock back" else 0)
builtins.open, os.mkdir, os.replace = faulty_open, faulty_mkdir, faulty_replace
