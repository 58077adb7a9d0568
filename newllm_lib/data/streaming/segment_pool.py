"""The processes that pack segments, one a core: in the background, awaited segments first."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO

from newllm_lib import console
from newllm_lib.data.streaming.segment_worker import MARK, Job
from newllm_lib.device import usable_cores as cores
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs.processes import command_of

AHEAD = 2  # segments a process has been given: one in work, one being read
PAUSE = 30.0  # seconds after a failure before more is prepared that nobody waits for yet
LINGER = 3.0  # seconds that a process waits for more to do: starting one takes about as long
OTHERS = 60.0  # seconds that a pool which prepares nothing by itself waits for the one that does
SILENCE = 10.0  # seconds of waiting before, and between, lines about it


class SegmentPool:
    """Packs the segments of a job, each into its own cache entry; what is there is not made again.

    Which process packs what, and when, depends on speed; what is packed does not.

    Args:
        processes: how many; default: one for each core that this process may use.
        leads: False where another process on this machine packs the same for a training that both take part
            in: then only what it does not bring in time is packed here.
    """

    def __init__(self, job: Job, processes: int | None = None, leads: bool = True):
        self.job, self.processes, self.leads = job, processes or cores(), leads
        self.documents: dict[int, int] = {}  # of the segments known to be there
        self._state = threading.Condition()
        self._plan: Iterator[int] = iter(())
        self._urgent: deque[int] = deque()
        self._told: set[int] = set()
        self._failed: dict[int, NewLLMError] = {}
        self._not_before = 0.0
        self._threads: list[threading.Thread] = []
        self._running: list[subprocess.Popen] = []
        self._closed = False

    def plan(self, numbers: Iterable[int]) -> None:
        """Pack these in the background, in this order, instead of what was planned before."""
        if not self.leads:
            return
        with self._state:
            self._plan = iter(numbers)
            self._start()
            self._state.notify_all()

    def wait(self, number: int) -> None:
        """Return when segment `number` is packed.

        Raises:
            NewLLMError: it cannot be.
        """
        began = spoke = time.monotonic()
        with self._state:
            self._failed.pop(number, None)  # an earlier failure, when nobody waited: it is tried once more
            while not self._is_there(number):
                if number in self._failed:
                    raise self._failed.pop(number)
                if self.leads or time.monotonic() - began > OTHERS:
                    if number not in self._told and number not in self._urgent:
                        self._urgent.append(number)
                    self._start()
                    self._state.notify_all()
                # so that a signal is seen, and what the others have packed
                self._state.wait(0.5 if self.leads else 0.1)
                if time.monotonic() - spoke > SILENCE:
                    spoke = time.monotonic()
                    console.say(
                        f"  Waiting for data: {self.job.segments[number]} ({len(self.documents):,} of "
                        f"{len(self.job.segments):,} pieces ready, {spoke - began:.0f} s)"
                    )

    def forget(self, number: int) -> None:
        """Segment `number` turned out to be damaged: it is made again."""
        with self._state:
            self.documents.pop(number, None)
            with contextlib.suppress(FileNotFoundError):
                (self.job.entry(number) / "meta.json").unlink()

    def close(self) -> None:
        """End the processes; what they have not finished is given up."""
        with self._state:
            self._closed = True
            for process in self._running:
                process.kill()  # what it was packing is in a temporary folder, swept when it is made again
            self._state.notify_all()
        for thread in self._threads:
            thread.join()

    def _is_there(self, number: int) -> bool:
        if number not in self.documents:
            try:
                meta = json.loads((self.job.entry(number) / "meta.json").read_text(encoding="utf-8"))
                self.documents[number] = meta["counts"]["documents"]
            except (OSError, ValueError, KeyError, TypeError):
                return False
        return True

    def _start(self) -> None:
        """Let there be as many threads as processes; each starts its process when it has something to do."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < self.processes and not self._closed:
            thread = threading.Thread(target=self._serve, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _next(self, wait: bool, linger: float = 0.0) -> int | None:
        """The next segment to pack; None: none now, or with `wait` none any more after `linger` seconds."""
        until = time.monotonic() + linger
        with self._state:
            while not self._closed:
                while self._urgent:
                    number = self._urgent.popleft()
                    if number not in self._told and not self._is_there(number):
                        self._told.add(number)
                        return number
                now = time.monotonic()
                if now >= self._not_before:
                    waiting = (n for n in self._plan if n not in self._told and not self._is_there(n))
                    following = next(waiting, None)
                    if following is not None:
                        self._told.add(following)
                        return following
                    if now >= until:
                        return None
                if not wait:
                    return None
                self._state.wait(1.0 if now < self._not_before else until - now)
        return None

    def _serve(self) -> None:
        """One process from its start to its end."""
        number = self._next(wait=True)
        if number is None:
            return
        process = self._spawn()
        told: deque[int] = deque([number])
        try:
            tell, answers = process.stdin, process.stdout
            assert tell is not None and answers is not None
            with tell, answers:
                tell.write(pickle.dumps(self.job))
                while told:
                    while number is not None:
                        tell.write(f"{number}\n".encode())
                        tell.flush()
                        number = self._next(wait=False) if len(told) < AHEAD else None
                        told.extend([] if number is None else [number])
                    self._take(self._answer(answers))
                    told.popleft()
                    number = self._next(wait=not told, linger=LINGER)
                    told.extend([] if number is None else [number])
        except (EOFError, OSError):
            self._lost(list(told), process.wait())
        finally:
            process.wait()
            self._running.remove(process)

    def _spawn(self) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with self._state:
            process = subprocess.Popen(
                command_of("newllm_lib.data.streaming.segment_worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # a Ctrl-C or a stop is for the training, which ends this
            )
            self._running.append(process)
            if self._closed:
                process.kill()
        return process

    def _answer(self, answers: IO[bytes]) -> dict:
        while line := answers.readline().decode("utf-8", "replace"):
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            console.say(line.rstrip("\n"))
        raise EOFError

    def _take(self, answer: dict) -> None:
        number = answer["segment"]
        with self._state:
            self._told.discard(number)
            if "error" in answer:
                self._fail([number], (UsageError if answer["usage"] else NewLLMError)(answer["error"]))
            else:
                self._failed.pop(number, None)
                self.documents[number] = answer["documents"]
            self._state.notify_all()

    def _lost(self, numbers: list[int], exit_code: int) -> None:
        """A process ended before these were done."""
        with self._state:
            self._told.difference_update(numbers)
            self._fail(
                numbers,
                NewLLMError(
                    f"A process that prepares the data ended unexpectedly (exit code {exit_code}). If it was "
                    "killed for want of memory, use a machine with more; else the same command continues."
                ),
            )
            self._state.notify_all()

    def _fail(self, numbers: list[int], error: NewLLMError) -> None:
        """Whoever waits for one of these gets the error; otherwise they are tried again later."""
        self._failed.update(dict.fromkeys(numbers, error))
        self._not_before = time.monotonic() + PAUSE
        self._plan = itertools.chain(numbers, self._plan)
