"""model_kinds.py: each kind of folder is recognised from its files; any other is refused."""

import pytest
import torch

from palindiff.inference.model_kinds import model_kind
from palindiff.pretrained.clip_folders import ClipParts, save_clip
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.training.recipes.build_models import build_models
from toys.contrastive import toy_image_encoder
from toys.recipe import toy_recipe
from toys.text_encoders import WIDTH


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toy_parts, encoder_folder, stable_diffusion):
    """A folder of each kind, the results of runs included."""
    root = tmp_path_factory.mktemp("kinds")
    build_models(toy_recipe(toy_parts), 0).save_pretrained(root / "run" / "checkpoint")
    text = load_text_encoder(str(encoder_folder / "sentence"))
    save_clip(ClipParts(toy_image_encoder(WIDTH), text, torch.tensor(1.0)), root / "clip-run" / "clip")
    return {
        "palindiff": root / "run" / "checkpoint",
        "run": root / "run",
        "stable_diffusion": stable_diffusion / "sd1",
        "clip": encoder_folder / "clip",
        "contrastive": root / "clip-run" / "clip",
        "contrastive run": root / "clip-run",
    }


@pytest.mark.parametrize("name", ["palindiff", "stable_diffusion", "clip", "contrastive"])
def test_a_kind_is_recognised(folders, name):
    assert model_kind(folders[name]) == (name, folders[name])


def test_the_folder_of_a_run_stands_for_its_result(folders):
    assert model_kind(folders["run"]) == ("palindiff", folders["palindiff"])
    assert model_kind(str(folders["contrastive run"])) == ("contrastive", folders["contrastive"])


def test_anything_else_is_refused_with_what_it_holds(tmp_path, encoder_folder):
    with pytest.raises(ValueError, match=r"it contains: nothing. Expected a palindiff .* Use one"):
        model_kind(tmp_path)
    with pytest.raises(ValueError, match=r"does not contain a supported model; it contains: 1_Pooling, .* more"):
        model_kind(encoder_folder / "sentence")
    with pytest.raises(FileNotFoundError, match=r"is not a folder. Expected a palindiff checkpoint.*Check the path"):
        model_kind(tmp_path / "nowhere")
