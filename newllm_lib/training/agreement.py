"""What one process of several wants, all do at the same step: stop (a signal came), save (asked for, or it is time)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from newllm_lib import console
from newllm_lib.training import ranks
from newllm_lib.training.callbacks import SaveRequests, Signals, Timetable


class Agreement(TrainerCallback):
    """The last of the callbacks. Each step's wishes are summed up beside the next step, so that nothing waits for them: all
    processes see the same sum, one step later.
    """

    def __init__(self, signals: Signals, timetable: Timetable, requests: SaveRequests):
        self.signals, self.timetable, self.requests = signals, timetable, requests
        self.wishes = self.message = None
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if self._heard():
            stop, save = self.wishes.tolist()
            if stop and self.signals.received is None:
                console.say("\nStopping: another process was asked to; saving a checkpoint first")
            self.stopped = self.stopped or bool(stop)
            control.should_save = control.should_save or bool(stop or save)
            control.should_training_stop = control.should_training_stop or bool(stop)
        if not control.should_training_stop:
            # Before a save the clock still says that one is due: not again.
            save = ranks.is_first() and not control.should_save and (self.timetable.is_due() or self.requests.taken())
            self.wishes = torch.tensor([int(self.signals.received is not None), int(save)])
            self.message = dist.all_reduce(self.wishes, group=ranks.host_group(), async_op=True)
        return control

    def _heard(self) -> bool:
        """Wait for the sum of what was sent after the last step; False if nothing was."""
        if self.message is None:
            return False
        self.message.wait()
        self.message = None
        return True

    def on_train_end(self, args, state, control, **kwargs):
        self._heard()
