"""Random draws come from generators seeded by what they are for, never from the global one."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from (seed, purpose...): the same everywhere, unrelated between purposes."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """Run a block with torch's global generators at `seed`, and put them back after it."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def digest(*values: Any) -> str:
    """The sha256 of values as canonical JSON, in hex."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
