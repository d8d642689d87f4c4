"""interpolation.py: both ends, for a CLIP with projections of its own."""

import torch
from transformers import CLIPModel

from palindiff.experiments.reproduction.interpolation import interpolate
from palindiff.pretrained.clip_folders import save_clip
from palindiff.pretrained.unidiff_folders import load_unidiff
from palindiff.training.recipes.build_unidiff import load_start
from toys.unidiff import train_unidiff, unidiff_recipe


def test_weights_between_start_and_result_are_those_of_both_ends_at_the_ends(toy_parts, stable_diffusion, tmp_path):
    """With the projections of a CLIP, too, which are no part of its text encoder's module."""
    recipe = unidiff_recipe(toy_parts, stable_diffusion)
    train_unidiff(recipe, tmp_path)
    for share, expected in ((0.0, stable_diffusion / "clip_1"), (1.0, tmp_path / "unidiff" / "clip")):
        clip, pipeline = load_unidiff(tmp_path / "unidiff")
        interpolate(load_start(recipe), clip, pipeline, share)
        save_clip(clip, folder := tmp_path / f"share-{share}")
        found, wanted = CLIPModel.from_pretrained(folder), CLIPModel.from_pretrained(expected)
        for name, weight in wanted.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], weight, msg=lambda text, name=name: f"{name}: {text}")
