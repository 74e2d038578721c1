"""What every test stands on: `from tiny import ...`, no network, one thread."""

import os
import sys
from pathlib import Path


# Before transformers is imported: it reads the variable once.
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import torch
from hypothesis import settings


torch.set_num_threads(1)
settings.register_profile("engram", deadline=None)  # no test asserts a time
settings.load_profile("engram")
