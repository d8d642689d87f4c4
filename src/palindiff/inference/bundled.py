"""Loading a model that is bundled with the package. Not here: which there are (`pretrained/bundled.py`)."""

from pathlib import Path

import torch

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.bundled import bundled_folder, bundled_parts
from palindiff.pretrained.layout import check_whole
from palindiff.pretrained.model_card import read_card
from palindiff.pretrained.vocabulary import read_vocabulary


def load(name: str, torch_dtype: torch.dtype = torch.float32, base: Path | None = None) -> PalindiffPipeline:
    """Load a bundled model, offline: `palindiff.load("emoji")`. `base` is another folder of checkpoints.

    Raises: FileNotFoundError if there is none of that name; ModuleNotFoundError if the text encoder's package is
            missing.
    """
    pipeline = PalindiffPipeline(**bundled_parts(name, torch_dtype, base))
    check_whole(pipeline.components)
    folder = bundled_folder(name, base)
    pipeline.model_card, pipeline.vocabulary = read_card(folder), read_vocabulary(folder)
    return pipeline
