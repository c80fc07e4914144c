"""Random generators named by an address (seed, purpose, position). Nothing here keeps state or reads a global one."""

from __future__ import annotations

import hashlib

import numpy as np

Position = int | str


def _digest(seed: int, purpose: str, position: tuple[Position, ...]) -> int:
    plain = tuple(str(part) if isinstance(part, str) else int(part) for part in position)  # numpy's have another repr
    address = repr((int(seed), purpose, plain)).encode()
    return int.from_bytes(hashlib.blake2b(address, digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *position: Position) -> np.random.Generator:
    """A generator that depends on its address alone: Philox keyed by 128 bits of the address's hash."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, purpose, position)))


def fraction(seed: int, purpose: str, *position: Position) -> float:
    """A number from 0 to 1 (excluded) that depends on its address alone; cheaper than a generator of one draw."""
    return (_digest(seed, purpose, position) >> 75) / 2**53  # 53 bits: as many as a float holds


def torch_seed(seed: int, purpose: str, *position: Position) -> int:
    """A 63-bit seed for torch.manual_seed, from the same addresses."""
    return _digest(seed, purpose, position) & (2**63 - 1)
