"""Seeds of random numbers, a different one for each purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one named purpose, derived from the run's seed.

    Purposes do not share random numbers, so that one more draw for one purpose (dropout) changes no
    draw for another (the order of examples). The names are hashed by SHA-256, since Python's own hash
    of text differs between processes.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
