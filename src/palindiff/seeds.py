"""Random numbers that depend on a name and on nothing else, so no random state has to be stored or shared."""

import hashlib

import torch


def hash_63_bits(text: str) -> int:
    """The first 63 bits of a text's SHA-256, the same in every process; a valid int64 and torch seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_generator(*parts: object) -> torch.Generator:
    """Make a CPU generator that depends on these parts alone, such as (seed, "draws", step)."""
    return torch.Generator().manual_seed(hash_63_bits("/".join(map(str, parts))))
