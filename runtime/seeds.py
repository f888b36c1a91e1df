"""Stateless random numbers: each draw is a pure function of a key such as (seed, epoch, item)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on `key` only, in any process and order of calls."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_rng(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`. Noise drawn on the CPU is the same for every device."""
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_rng(*key: int | str) -> np.random.Generator:
    """A numpy generator seeded by `key`."""
    return np.random.default_rng(seed_of(*key))
