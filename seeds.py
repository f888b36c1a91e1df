"""Randomness without state: every random draw is a pure function of a key such as (seed, epoch, item)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else (no process, no call order)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_rng(*key: int | str) -> torch.Generator:
    """A CPU generator for `key`. Noise is always drawn on the CPU, so it is the same on every device."""
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_rng(*key: int | str) -> np.random.Generator:
    """A numpy generator for `key`."""
    return np.random.default_rng(seed_of(*key))
