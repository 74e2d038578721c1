"""Seeds for random draws: each generator is seeded by its purpose, and none is global."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed, a hash of (seed, purpose...).

    The seed is the same on every machine, and seeds of different purposes are independent.
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """Seed torch's global generators with `seed` for a block, and restore them after it."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def digest(*values: Any) -> str:
    """Return the SHA-256 of the values as canonical JSON, in hex."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
