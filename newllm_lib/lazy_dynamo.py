"""torch's compiler, imported when it is first needed and not before.

`torch._dynamo` and SymPy, which it brings, are a third of what training imports. Most runs compile nothing,
but transformers names one of its classes, torch's optimizers and custom operators ask it to leave them alone,
and accelerate asks whether a model is compiled. Here modules stand in its place that answer just that. Any
other question, and any import of a part of it, brings the real one, which then takes over.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "torch._dynamo"
_MODELS, _MASKS = f"{_NAME}.eval_frame", f"{_NAME}._trace_wrapped_higher_order_op"
_allowed: list[Callable] = []  # in compiled graphs, as the real module is still to be told


class _StandIn(ModuleType):
    """Has what is set on it; what else is asked for is the real module's."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # as `inspect` asks all modules for
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Parts(MetaPathFinder):
    """Finds parts of the real module, which it lets be imported for that."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{_NAME}."):
            return None
        _real(_NAME)
        there = sys.modules.get(name)  # importing the whole has imported most parts
        return None if there is None else ModuleSpec(name, _There(there))


class _There(Loader):
    """Loads a module that is imported already: as it is. Python would load it anew by its own spec, so it has
    none meanwhile (set past `__setattr__`: torch's configurations refuse what is no option).
    """

    def __init__(self, module: ModuleType):
        self.module, self.spec = module, module.__spec__
        vars(module)["__spec__"] = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec


def install() -> None:
    """Let modules stand in for `torch._dynamo`, unless it is imported already; imports torch."""
    if _NAME in sys.modules:
        return
    import torch

    compiler = _StandIn(_NAME)
    compiler.__path__ = [f"{place}/_dynamo" for place in torch.__path__]
    compiler.disable = _disable
    compiler.graph_break = lambda msg="": None
    compiler.assume_constant_result = _assume_constant_result
    compiler.allow_in_graph = _allow_in_graph
    compiler.eval_frame = _StandIn(_MODELS)
    compiler.eval_frame.OptimizedModule = type("OptimizedModule", (), {})  # there is none yet
    masks = _StandIn(_MASKS)
    masks.TransformGetItemToIndex = lambda: _real(_MASKS).TransformGetItemToIndex()
    sys.modules.update({module.__name__: module for module in (compiler, compiler.eval_frame, masks)})
    sys.meta_path.insert(0, _Parts())


def _real(name: str) -> ModuleType:
    """The real module of that name; nothing stands in its place from now on."""
    for stood_in_for in (_NAME, _MODELS, _MASKS):
        if isinstance(sys.modules.get(stood_in_for), _StandIn):
            del sys.modules[stood_in_for]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Parts)]
    compiler = importlib.import_module(_NAME)
    while _allowed:
        compiler.allow_in_graph(_allowed.pop())
    return importlib.import_module(name)


def _assume_constant_result(fn: Callable) -> Callable:
    fn._dynamo_marked_constant = True  # type: ignore[attr-defined]  # all that torch's does
    return fn


def _allow_in_graph(fn: Callable) -> Callable:
    _allowed.append(fn)
    return fn


def _disable(fn: Callable | None = None, recursive: bool = True, **how: object) -> Callable:
    """As `torch._dynamo.disable`: until the compiler is imported, nothing has to be kept from it."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **how)

    @functools.wraps(fn)
    def run(*args: object, **kwargs: object) -> object:
        nonlocal disabled
        if disabled is None and not isinstance(sys.modules.get(_NAME), _StandIn):
            disabled = _real(_NAME).disable(fn, recursive, **how)
        return (disabled or fn)(*args, **kwargs)

    disabled = None
    return run
