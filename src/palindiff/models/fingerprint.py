"""Fingerprints of networks, by which what was computed with them is recognised."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn


def fingerprint(module: nn.Module, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over a module's settings and weights; None takes its configuration, without the path it came from."""
    if settings is None:
        settings = {name: value for name, value in dict(module.config).items() if not name.startswith("_")}  # type: ignore[arg-type]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
