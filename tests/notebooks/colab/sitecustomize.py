"""Put this folder on PYTHONPATH and Python takes itself for Colab's, with Drive in the folder FAKE_DRIVE."""

import os
from pathlib import Path

from newllm_lib.colab import drive

drive.mount.__defaults__ = (Path(os.environ["FAKE_DRIVE"]),)
