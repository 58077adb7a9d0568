"""What comes from outside while a run trains: signals that end it, and requests to save."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from newllm_lib import console
from newllm_lib.runs import Run
from newllm_lib.training.timetable import Decision, Timetable

# Ctrl-C, `newllm runs stop`, and the terminal's going (Windows has no such signal)
NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Signals:
    """SIGINT, SIGTERM, SIGHUP: finish the step, save, stop. A second Ctrl-C stops at once, the others not.

    `with Signals() as signals:` has the handlers in place; `signals.received` is the first signal's number.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has SIGHUP
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:  # `newllm runs stop` twice: the save goes on
            return
        self.received = number
        console.say("\nStopping: saving a checkpoint first (press Ctrl-C again to stop at once)")


class SaveRequests:
    """Whether somebody asks for a save (`runs.ask_to_save`, the notebooks' Save button)."""

    def __init__(self, run: Run):
        self.run = run
        run.save_request.unlink(missing_ok=True)  # of an earlier life

    def taken(self) -> bool:
        """Whether somebody has asked since the last look."""
        if not self.run.save_request.exists():
            return False
        self.run.save_request.unlink(missing_ok=True)
        return True


class Flags:
    """What signals, requests and the clock add to what the timetable has decided."""

    def __init__(self, signals: Signals, timetable: Timetable, requests: SaveRequests):
        self.signals, self.timetable, self.requests = signals, timetable, requests

    @property
    def stopped(self) -> bool:
        """Whether a signal is what ended the run."""
        return self.signals.received is not None

    def heed(self, decision: Decision) -> None:
        """Add them to a step's decision, in place."""
        if self.stopped:
            decision.save = decision.stop = True
        if self.timetable.is_due() or self.requests.taken():
            decision.save = True

    def end(self) -> None:
        """The last step is done."""
