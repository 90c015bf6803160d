"""Randomness as a pure function of a key: the same draw on any process, at any time."""

import hashlib

import numpy as np


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed from integers and names, for example (seed, "dropout", step, slot)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_rng(*key: int | str) -> np.random.Generator:
    """A numpy generator (Philox) that depends on the key alone."""
    return np.random.Generator(np.random.Philox(key=keyed_seed(*key)))
