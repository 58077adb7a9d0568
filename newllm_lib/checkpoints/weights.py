"""A file of weights compared with the model they are for, before anything of it is read into memory."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import safetensors_header

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_weights(folder: Path, model) -> None:
    """Refuse weights that are not this model's: another shape, or integers where it has floating point.

    Args:
        model: a built model; one on the meta device is enough.

    Raises:
        NewLLMError: names the tensor, what it is and what it should be.
    """
    expected = model.state_dict()
    for file in sorted(Path(folder).glob("*.safetensors")):
        for name, (dtype, shape) in safetensors_header(file).items():
            wanted = expected.get(name)
            if wanted is None:
                continue
            if tuple(wanted.shape) != shape:
                raise NewLLMError(
                    _refusal(file, name, f"has the shape {_text(shape)}", _text(tuple(wanted.shape)))
                )
            if wanted.dtype.is_floating_point != (dtype in _FLOATS):
                raise NewLLMError(
                    _refusal(file, name, f"holds {dtype}", str(wanted.dtype).removeprefix("torch."))
                )


def check_depth(folder: Path, config) -> None:
    """Refuse a configuration that names more layers than there are weights, before they are all built.

    Raises:
        NewLLMError: says how many.
    """
    count = sum(len(safetensors_header(file)) for file in Path(folder).glob("*.safetensors"))
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > count > 0:
        raise NewLLMError(
            f"{folder}: config.json names {layers:,} layers, and there are {count:,} weights: refused. "
            "Copy the folder again from where it was trained."
        )


def _refusal(file: Path, name: str, found: str, wanted: str) -> str:
    return (
        f"{file}: {name} {found}, this model needs {wanted}: refused. "
        "Copy the folder again from where it was trained."
    )


def _text(shape: tuple) -> str:
    return "x".join(map(str, shape)) or "of a number"


def load_weights(model, folder: Path) -> None:
    """Fill a built model with the weights saved in a folder, one file in the host's memory at a time.

    Raises:
        NewLLMError: some are missing, or are not this model's.
    """
    missing, unknown = set(model.state_dict()), set()
    for file in sorted(Path(folder).glob("model*.safetensors")):
        found = load_file(file)
        missing -= found.keys()
        unknown |= set(model.load_state_dict(found, strict=False).unexpected_keys)
    model.tie_weights()  # a tied head is in no file
    missing -= set(getattr(model, "all_tied_weights_keys", {}))
    if missing or unknown:
        what = f"no {min(missing)}" if missing else f"{min(unknown)}, which this model does not know"
        raise NewLLMError(f"{folder} holds {what}: copy it again from where it was trained.")
