"""torch's compiler is imported when somebody needs it, and is then what it always was."""

import subprocess
import sys

BEFORE = """
import sys, torch
from newllm_lib import lazy_dynamo
lazy_dynamo.install()
def there():
    return hasattr(sys.modules["torch._dynamo"], "__file__")
"""


def said(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEFORE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_training_step_does_without_it():
    code = """
from accelerate import Accelerator
model = torch.nn.Linear(2, 2)
prepared = Accelerator(cpu=True).prepare_model(model)
optimizer = torch.optim.AdamW(prepared.parameters())
prepared(torch.ones(1, 2)).sum().backward()
optimizer.step()
@torch.library.custom_op("test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2
print(twice(torch.ones(1)).item(), there())
"""
    assert said(code) == "2.0 False"


NEEDS = (
    "import torch._dynamo.config as part",
    "from torch._dynamo.eval_frame import innermost_fn as part",
    "from torch._dynamo import config as part",
    "part = torch._dynamo.mark_dynamic",
    "part = torch.compiler.set_stance('force_eager')",
    "from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as part; part()",
)


def test_what_needs_it_brings_the_real_one():
    code = f"""
import os
for needs in {NEEDS!r}:
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, needs
        continue
    exec(needs)
    import torch._dynamo, torch._dynamo.config
    assert there() and part is not None
    assert sys.modules["torch._dynamo"] is torch._dynamo
    assert torch._dynamo.config is sys.modules["torch._dynamo.config"] is torch._dynamo.convert_frame.config
    assert "_Parts" not in [type(finder).__name__ for finder in sys.meta_path]
    os._exit(0)
print(there())
"""
    assert said(code) == "False"


def test_it_compiles_and_leaves_alone_what_was_kept_from_it():
    code = """
seen = []
@torch.compiler.disable(recursive=False)
def apart(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1
allowed = torch._dynamo.allow_in_graph(lambda x: x)
apart(torch.ones(1))
assert not there()
compiled = torch.compile(lambda x: apart(x * 2), backend="eager")
print(compiled(torch.ones(1)).item(), seen)
print(id(allowed) in torch._dynamo.trace_rules._allowed_callable_ids)
model = torch.compile(torch.nn.Linear(1, 1))
print(isinstance(model, torch._dynamo.eval_frame.OptimizedModule))
"""
    assert said(code) == "3.0 [False, False]\nTrue\nTrue"


def test_is_left_alone_where_it_is_imported_already():
    assert said("torch._dynamo.config\nlazy_dynamo.install()\nprint(there())") == "True"
