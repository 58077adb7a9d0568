"""A model's program as one file of plain torch, for those who have no newllm_lib.

It is made from the sources of the models, layers and references as they are installed, so it cannot drift
from them. `modeling_file` begins with a model's classes and follows every name to its definition: of an
operation its plain reference is taken, what leads to a kernel is left out, and what remains is written down
in the order in which Python needs it. Where newllm_lib is installed, the file's classes are the library's.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from newllm_lib import __version__
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.security import EXPORTED_MARK

# model_type -> its module, and what transformers' Auto classes call its classes
KINDS = {
    "new_llm": ("newllm_lib.models.new_llm", "NewLLM"),
    "phase7": ("newllm_lib.models.phase7", "Phase7"),
}
_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
_SCORES = "newllm_lib.models.sequence_classification"  # where the class is that gives a text a number
_CLASSES_THERE = {"AutoModelForSequenceClassification": "ForSequenceClassification"}
_OURS = "newllm_lib"
_HEAD = f"""{EXPORTED_MARK} of New-LLM {__version__}, MIT licence, from its plain references:
# https://github.com/rato-tokyo/new-llm. Where newllm_lib is installed, its faster classes are used instead.
"""
_TAIL = """

try:
    import newllm_lib.models as fast
    import newllm_lib.models.sequence_classification as fast_scores
except ImportError:
    fast = None
if fast is not None:
{classes}
"""
_FAST = """
    class {prefix}Config(fast.{prefix}Config):
        pass

    class {prefix}Model(fast.{prefix}Model):
        config_class = {prefix}Config

    class {prefix}ForCausalLM(fast.{prefix}ForCausalLM):
        config_class = {prefix}Config

    class {prefix}ForSequenceClassification(fast_scores.{prefix}ForSequenceClassification):
        config_class = {prefix}Config
"""


def auto_map(model_type: str) -> dict[str, str]:
    """What config.json says of the file: which of its classes is which of transformers' Auto classes."""
    prefix = KINDS[model_type][1]
    names = _CLASSES | _CLASSES_THERE
    return {auto: f"modeling_{model_type}.{prefix}{name}" for auto, name in names.items()}


def modeling_file(model_type: str) -> str:
    """The text of modeling_<model_type>.py.

    Args:
        model_type: one of `KINDS`.
    """
    module, prefix = KINDS[model_type]
    assembled = _Assembly()
    for name in _CLASSES.values():
        assembled.need(module, prefix + name)
    for name in _CLASSES_THERE.values():
        assembled.need(_SCORES, prefix + name)
    parts = [_HEAD + "from __future__ import annotations\n", "\n".join(assembled.import_lines())]
    parts += [ast.unparse(ast.fix_missing_locations(statement)) for statement in assembled.statements]
    return "\n\n".join(parts) + _TAIL.format(classes=_FAST.format(prefix=prefix))


class _LeadsToKernel(Exception):
    """A name that has no place in plain torch."""


@dataclass
class _Module:
    """A module of ours: its statements by the names that they bind, and its operations' plain modules."""

    name: str
    package: str
    tree: ast.Module
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name -> module, name in it
    operations: dict[str, str] = field(default_factory=dict)  # name -> name of the plain module

    @classmethod
    def read(cls, name: str) -> _Module:
        spec = importlib.util.find_spec(name)
        package = name if spec.submodule_search_locations else name.rpartition(".")[0]
        module = cls(name, package, ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        for statement in module.tree.body:
            module._add(statement)
        return module

    def _add(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            self.defined[statement.name] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                self.imported[alias.asname or alias.name.partition(".")[0]] = (alias.name, None)
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                self.imported[alias.asname or alias.name] = (statement.module, alias.name)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            made = [n for n in ast.walk(statement) if isinstance(n, ast.Call) and _called(n) == "Operation"]
            self.operations |= dict(zip(names, (call.args[0].id for call in made), strict=False))
            self.defined |= dict.fromkeys(names, statement)


def _called(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None


class _Assembly:
    """Definitions in the order in which they are needed, each under a name of its own."""

    def __init__(self):
        self.modules: dict[str, _Module] = {}
        self.names: dict[tuple[str, str], str] = {}  # (module, name there) -> name in the file
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.statements: list[ast.stmt] = []

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _Module.read(name)
        return self.modules[name]

    def import_lines(self) -> list[str]:
        lines = []
        for name, (module, there) in sorted(self.imports.items(), key=lambda item: (item[1][0], item[0])):
            called = f" as {name}" if name != (there or module.partition(".")[0]) else ""
            lines.append(f"from {module} import {there}{called}" if there else f"import {module}{called}")
        return lines

    def need(self, module: str, name: str) -> str:
        """Write down what a module calls so, and all that it needs; returns its name in the file.

        Raises:
            _LeadsToKernel: it is of no use without a kernel.
        """
        module, name = self.home(module, name)
        if (module, name) in self.names:
            return self.names[module, name]
        statement = self.module(module).defined[name]
        taken = {*self.names.values(), *self.imports, *dir(builtins)}
        mine = f"plain_{name}" if self._has_a_face(module, name) else name
        mine = mine if mine not in taken else f"{module.rpartition('.')[2]}_{name.lstrip('_')}"
        self.names[module, name] = mine
        written = _Rewriter(self, self.module(module), mine).rewritten(statement)
        self.statements.append(written)
        return mine

    def _has_a_face(self, module: str, name: str) -> bool:
        """Whether this is what an operation's function of the same name falls back on."""
        here = self.module(module)
        return module != here.package and ".ops." in module and name in self.module(here.package).defined

    def home(self, module: str, name: str) -> tuple[str, str]:
        """The module and the name there of a definition, the plain one of an operation's.

        Raises:
            _LeadsToKernel: there is no plain one.
        """
        here = self.module(module)
        if name in here.imported and here.imported[name][0].startswith(_OURS):
            return self.home(*here.imported[name])
        if name not in here.defined:  # a lazy face's
            found = getattr(importlib.import_module(module), name)
            return self.home(found.__module__, name)
        if ".ops." in module and not _is_plain(here):
            for plain in (f"{here.package}.reference", f"{here.package}.plain"):
                if importlib.util.find_spec(plain) is not None and name in self.module(plain).defined:
                    return plain, name
            raise _LeadsToKernel(f"{module}.{name}")
        return module, name

    def as_module(self, module: _Module, name: str) -> str | None:
        """The module that `name` stands for in `module`; None: it stands for something else."""
        source, there = module.imported.get(name, ("", None))
        if source.startswith(_OURS) and there and importlib.util.find_spec(source).submodule_search_locations:
            inner = f"{source}.{there}"
            try:
                return inner if importlib.util.find_spec(inner) else None
            except ModuleNotFoundError:
                return None
        return None


def _is_plain(module: _Module) -> bool:
    """Whether a module of operations holds plain torch: a face, what one falls back on, what all share."""
    last = module.name.rpartition(".")[2]
    shared = module.name.endswith(".linear_scan")
    return (
        module.name == module.package
        or bool(module.operations)
        and last != "operator"
        or shared
        or (last in ("reference", "plain", "chunked") and not _knows_kernels(module))
    )


def _knows_kernels(module: _Module) -> bool:
    return any(source.startswith(f"{_OURS}.ops.common.dispatch") for source, _ in module.imported.values())


class _Rewriter(ast.NodeTransformer):
    """A definition with each of its names as it is called in the file, and without what leads to a kernel."""

    def __init__(self, assembly: _Assembly, module: _Module, name: str):
        self.assembly, self.module, self.name = assembly, module, name
        self.local: list[set[str]] = []
        self.cut: set[str] = set()  # methods that are left out

    def rewritten(self, statement: ast.stmt) -> ast.stmt:
        statement = ast.parse(ast.unparse(statement)).body[0]  # a copy
        old = getattr(statement, "name", None)
        if isinstance(statement, ast.ClassDef):
            self._cut_methods(statement)
        written = self.visit(statement)
        if old is not None:
            written.name = self.name
        return written

    def _cut_methods(self, statement: ast.ClassDef) -> None:
        for method in statement.body:
            if isinstance(method, ast.FunctionDef) and self._leads_to_kernel(method):
                self.cut.add(method.name)
        statement.body = [m for m in statement.body if getattr(m, "name", None) not in self.cut]

    def _leads_to_kernel(self, node: ast.AST) -> bool:
        """Whether it names what has no place in plain torch, other than in an `if` that can be left out."""
        for child in ast.walk(node):
            if isinstance(child, ast.ImportFrom) and child.module.startswith(_OURS):
                return True
            if isinstance(child, ast.Name) and not self._is_local(child.id):
                source = self.module.imported.get(child.id, ("", None))[0]
                if source == f"{_OURS}.ops.common.dispatch" or self._is_fast_module(child.id):
                    return True
            if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
                if child.value.id == "self" and child.attr in self.cut:
                    return True
        return False

    def _is_fast_module(self, name: str) -> bool:
        module = self.assembly.as_module(self.module, name)
        return module is not None and ".ops." in module and not _is_plain(self.assembly.module(module))

    def _is_local(self, name: str) -> bool:
        return any(name in names for names in self.local)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if self._leads_to_kernel(node):
            return [self.visit(statement) for statement in node.orelse] or None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        decorators = [d for d in node.decorator_list if "custom_op" not in ast.unparse(d)]
        node.decorator_list = decorators
        arguments = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        inner = {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n is not node}
        late = {a.asname or a.name for n in ast.walk(node) if isinstance(n, ast.Import) for a in n.names}
        self.local.append(arguments | stored | inner | late)
        written = self.generic_visit(node)
        self.local.pop()
        return written

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.local.append({a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)})
        written = self.generic_visit(node)
        self.local.pop()
        return written

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        operation = _operation_in(node.value)
        if (
            operation in self.module.operations
        ):  # `_implementation(x).f` and `_implementation.named("…", x).f`
            plain = self.module.operations[operation]
            return ast.Name(self._in_module(plain, node.attr), node.ctx)
        if isinstance(node.value, ast.Name) and not self._is_local(node.value.id):
            if self.assembly.as_module(self.module, node.value.id):
                return ast.Name(self._in_module(node.value.id, node.attr), node.ctx)
        return self.generic_visit(node)

    def _in_module(self, called: str, name: str) -> str:
        return self.assembly.need(self.assembly.as_module(self.module, called), name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if self._is_local(node.id):
            return node
        if isinstance(node.ctx, ast.Store):
            node.id = (
                self.name if self.module.defined.get(node.id) is not None and not self.local else node.id
            )
            return node
        if node.id in self.module.defined:
            node.id = self.assembly.need(self.module.name, node.id)
        elif node.id in self.module.imported:
            node.id = self._imported(node.id)
        return node

    def _imported(self, name: str) -> str:
        source, there = self.module.imported[name]
        if source.startswith(_OURS):
            return self.assembly.need(self.module.name, name)
        known = self.assembly.imports.setdefault(name, (source, there))
        if known != (source, there) or name in self.assembly.names.values():
            raise NewLLMError(f"The modelling file would have two {name}: rename one in {self.module.name}.")
        return name


def _operation_in(node: ast.AST) -> str | None:
    """`f` of `f(…)` and of `f.named(…)`."""
    if not isinstance(node, ast.Call):
        return None
    inner = (
        node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "named" else node.func
    )
    return inner.id if isinstance(inner, ast.Name) else None
