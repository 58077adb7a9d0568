"""Loss scaling without a GPU."""

import torch

from newllm_lib.training import loop


def scale_losses(monkeypatch, **how) -> None:
    """Loss scaling as on a GPU with fp16: torch's scaler works on a processor too, for float32's
    gradients.
    """
    real = loop.make_accelerator

    def scaled(*words):
        accelerator = real(*words)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, **how)
        accelerator.state._mixed_precision = (
            "fp16"  # by which it knows that gradients are scaled back before they are clipped
        )
        monkeypatch.setattr(accelerator, "prepare_model", lambda model, **_: model)
        accelerator.native_amp = True
        return accelerator

    monkeypatch.setattr(loop, "make_accelerator", scaled)
