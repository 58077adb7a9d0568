#@title Install · インストール {display-mode: "form"}
import importlib.util, os, re, subprocess, sys
from pathlib import Path

folders = [Path.cwd(), *Path.cwd().parents]
clone = next((folder for folder in folders if (folder / "colab_bootstrap.sh").is_file()), None)
if not all(map(importlib.util.find_spec, ("newllm_lib", "torch", "transformers", "trl", "chitchat_dataset"))):
    clone = clone or Path("/content/new-llm" if os.path.isdir("/content") else "new-llm").absolute()
    url = os.environ.get("NEWLLM_REPO_URL", "https://github.com/rato-tokyo/new-llm")
    if not clone.exists() and subprocess.run(["git", "clone", "-q", url, str(clone)], stderr=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{re.sub('//[^/]*@', '//', url)} could not be cloned: look at the network, or set NEWLLM_REPO_URL.")
    if subprocess.run(["bash", "colab_bootstrap.sh", "--setup-only"], cwd=clone).returncode:
        raise SystemExit("The installation failed; the line above says why. Run this cell again when it is mended.")
    sys.path.insert(0, str(clone))
    importlib.invalidate_caches()
importlib.import_module("newllm_lib.colab.environment").ready(clone)
