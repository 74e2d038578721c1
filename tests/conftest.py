"""What every test stands on: `from tiny import ...`, no network, one thread."""

import gc
import os
import sys
import tempfile
from pathlib import Path


# Before transformers is imported: it reads the variable once.
os.environ["HF_HUB_OFFLINE"] = "1"
# One thread each: for tensors and rows this small, several wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="perdure-state-")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from hypothesis import settings


torch.set_num_threads(1)
settings.register_profile("perdure", deadline=None)  # no test asserts a time
settings.load_profile("perdure")


def pytest_addoption(parser):
    parser.addoption("--method", help="only the tests of this method, those marked slow as well")


def pytest_configure(config):
    if config.getoption("--method") and config.option.markexpr == "not slow":
        config.option.markexpr = ""


def pytest_collection_modifyitems(config, items):
    """With `--method`, keep the tests whose parameters name the method, first if there are more."""
    wanted = config.getoption("--method")
    if wanted:
        selected = [item for item in items if method_of(item) == wanted]
        config.hook.pytest_deselected(items=[item for item in items if item not in selected])
        items[:] = selected


def method_of(item) -> str | None:
    """The method that a test is about, the first that its parameter names; None without one."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    method = next(
        (parameters[key] for key in ("name", "method", "pair") if key in parameters), None
    )
    return next(iter(method)) if isinstance(method, (dict, list, tuple)) else method


def pytest_runtest_setup(item):
    """The model's package is no requirement of any extra: without it its tests say what to install.

    The first test that needs the model converts it, if the cache does not have it.
    """
    if item.get_closest_marker("smollm2"):
        from perdure.errors import PerdureError
        from perdure.models.smollm2 import smollm2

        try:
            smollm2()
        except PerdureError as error:
            pytest.skip(str(error))


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage():
    """The Trainer collects garbage after each training, 0.3 s over all that was ever imported.

    What a module begins with is left out of it, which makes the tests of tiny models twice as fast.
    """
    gc.collect()
    gc.freeze()
