"""Runs another package's command where newllm_lib cannot be imported: `without_newllm.py MODULE ARGS…`"""

import importlib.util
import runpy
import sys
from pathlib import Path

sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path = [place for place in sys.path if not (Path(place) / "newllm_lib").is_dir()]
assert importlib.util.find_spec("newllm_lib") is None
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
