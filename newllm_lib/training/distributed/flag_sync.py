"""What one process wants, all do at the same step: stop for a signal, save on request or in time."""

from __future__ import annotations

import torch
import torch.distributed as dist

from newllm_lib import console
from newllm_lib.training.distributed import process_group
from newllm_lib.training.signals import Flags, SaveRequests, Signals
from newllm_lib.training.timetable import Decision, Timetable


class FlagSync(Flags):
    """Each step's flags are summed up beside the next step, so that nothing waits for them: all processes
    see the same sum, one step later.
    """

    def __init__(self, signals: Signals, timetable: Timetable, requests: SaveRequests):
        super().__init__(signals, timetable, requests)
        self.flags = self.message = None
        self.agreed = False

    @property
    def stopped(self) -> bool:
        return self.agreed

    def heed(self, decision: Decision) -> None:
        if self._heard():
            stop, save = self.flags.tolist()
            if stop and self.signals.received is None:
                console.say("\nStopping: another process was asked to; saving a checkpoint first")
            self.agreed = self.agreed or bool(stop)
            decision.save = decision.save or bool(stop or save)
            decision.stop = decision.stop or bool(stop)
        if not decision.stop:
            # Before a save the clock still says that one is due: not again.
            save = (
                process_group.is_main_process()
                and not decision.save
                and (self.timetable.is_due() or self.requests.taken())
            )
            self.flags = torch.tensor([int(self.signals.received is not None), int(save)])
            self.message = dist.all_reduce(self.flags, group=process_group.host_group(), async_op=True)

    def end(self) -> None:
        self._heard()

    def _heard(self) -> bool:
        """Wait for the sum of what was sent after the last step; False if nothing was."""
        if self.message is None:
            return False
        self.message.wait()
        self.message = None
        return True
