"""palindiff: one diffusion network for text-to-image generation, zero-shot classification and image-text retrieval."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ImageReading", "PalindiffPipeline", "QueryStream", "load"]

if TYPE_CHECKING:
    from palindiff.inference.bundled import load
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.models.image_reading import ImageReading
    from palindiff.models.query_stream import QueryStream

_HOMES = {
    "ImageReading": "palindiff.models.image_reading",
    "PalindiffPipeline": "palindiff.inference.pipeline",
    "QueryStream": "palindiff.models.query_stream",
    "load": "palindiff.inference.bundled",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for, so that importing palindiff imports no diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'palindiff' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
