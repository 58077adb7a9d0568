"""What makes imports quicker leaves nothing else changed."""

import gc
import subprocess
import sys

import pytest

from newllm_lib import preload


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_is_collected_again_as_before(was_on):
    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ValueError, match="wrong"), preload.without_collecting():
            assert not gc.isenabled()
            raise ValueError("wrong")
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()


def test_reads_byte_code_and_libraries_but_not_what_is_left_out(tmp_path, monkeypatch):
    package = tmp_path / "a_package"
    for name in ("inner/__pycache__/a.pyc", "inner/b.so", "inner/c.txt", "big/d.pyc", "inner/big/e.pyc"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"x")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(preload, "PACKAGES", ("no_such_package", "a_package"))
    monkeypatch.setattr(preload, "LEFT_OUT", {"a_package": ("big",)})
    opened = []
    monkeypatch.setattr(
        preload, "open", lambda name, mode: opened.append(name) or open(name, mode), raising=False
    )
    (package / "inner" / "gone.so").symlink_to(
        package / "nowhere"
    )  # a file that cannot be read stops nothing
    preload.read_ahead().join(timeout=20)
    names = {name[len(str(package)) + 1 :] for name in opened}
    assert names == {"inner/__pycache__/a.pyc", "inner/b.so", "inner/big/e.pyc", "inner/gone.so"}


def test_imports_nothing_itself():
    code = (
        "import sys; from newllm_lib.preload import read_ahead; read_ahead().join(); print('torch' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_transformers_model_files_are_read_once():
    code = """
import transformers
from transformers.utils import import_utils
from newllm_lib.preload import read_models_once
file = transformers.__path__[0] + "/models/__init__.py"
expected, read = import_utils.define_import_structure(file), import_utils.create_import_structure_from_path
read_models_once()
import_utils.create_import_structure_from_path = None  # nothing is read from here on
print(import_utils.define_import_structure(file) == expected)
import_utils.create_import_structure_from_path = read
from transformers.models import GPT2Config, LlamaForCausalLM
print(GPT2Config.__name__, LlamaForCausalLM.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\nGPT2Config LlamaForCausalLM\n", done.stderr


def test_scikit_learn_is_missing_for_a_moment():
    code = """
import importlib.util, sys
from newllm_lib.lazy import without
with without("sklearn"):
    from transformers.utils import is_sklearn_available
    print(is_sklearn_available(), importlib.util.find_spec("sklearn"))
print("sklearn" in sys.modules)
sys.modules["sklearn"] = sys
with without("sklearn"):
    print(sys.modules["sklearn"] is sys)
print(sys.modules["sklearn"] is sys)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "None", "False", "True", "True"], done.stderr


def test_one_process_needs_nothing_of_several():
    """Transformers and accelerate, a model counted, trained and saved: no compiler, no SymPy, no DTensor."""
    code = """
import sys, tempfile, torch
from pathlib import Path
from newllm_lib import lazy, lazy_dynamo, preload
asked = torch.distributed.is_available
lazy_dynamo.install()
preload.as_one_process()
assert torch.distributed.is_available is asked
from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM
from newllm_lib.training.model_config import count_parameters
from newllm_lib.training.strategies import Autograd
config = NewLLMConfig(vocab_size=8, hidden_size=4, context_dim=4, mlp_size=4, num_hidden_layers=1)
model, ids = NewLLMForCausalLM(config), torch.ones(1, 2, dtype=torch.long)
print(count_parameters(config) == sum(p.numel() for p in model.parameters()))
model(input_ids=ids, labels=ids).loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
torch.optim.AdamW(model.parameters()).step()
with tempfile.TemporaryDirectory() as folder:
    with lazy.without("torch.distributed.tensor"):
        model.save_pretrained(folder)
    print(sorted(path.suffix for path in Path(folder).iterdir()))
    print([name for name in ("sympy", "torch.distributed.tensor", "torch._inductor") if name in sys.modules])
    print(torch.equal(NewLLMForCausalLM.from_pretrained(folder).lm_head.weight, model.lm_head.weight))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    files = "['.json', '.json', '.safetensors']"
    assert done.stdout.splitlines() == ["True", files, "[]", "True"], done.stderr


def test_a_distribution_is_found_by_its_packages_name_without_reading_all(monkeypatch):
    read = preload.metadata.packages_distributions
    with preload.distributions_by_name():
        found = preload.metadata.packages_distributions()
        monkeypatch.setattr(preload.metadata, "distributions", None)  # nothing reads all of them
        assert found["torch"] == ["torch"] and found.get("huggingface_hub") == ["huggingface_hub"]
        monkeypatch.undo()
        assert found["yaml"] == ["PyYAML"] and found.get("no_such_package") is None
        assert len(found) == len(list(found)) > 10
    assert preload.metadata.packages_distributions is read
