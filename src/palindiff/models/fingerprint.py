"""Fingerprints of networks, by which what was computed with them is recognised."""

import hashlib
import json

from torch import nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over a module's configuration and weights; the path it was loaded from is left out."""
    settings = {name: value for name, value in dict(module.config).items() if not name.startswith("_")}  # type: ignore[arg-type]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
