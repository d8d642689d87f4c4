"""sharing.py: stock Stable Diffusion out of ours, other stock pipelines on our parts, cards kept, and pushing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.model_card import CardFacts, card_text, write_card
from palindiff.pretrained.saving import export_stable_diffusion, push_folder
from toys.hub import toy_hub
from toys.models import toy_images
from toys.saving import generated, write_stable_diffusion

CARD = card_text(CardFacts(name="toy", datasets=("somebody/images",)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharing")
    write_stable_diffusion(root)
    return root


@pytest.fixture(scope="module")
def ours(root):
    return PalindiffPipeline.from_pretrained(root / "checkpoint")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with toy_hub(monkeypatch, tmp_path / "hub") as (repositories, asked):
        yield repositories, asked


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_stock_pipeline_has_the_same_parts_and_generates_the_same(ours):
    stock = ours.to_stable_diffusion()
    assert type(stock) is StableDiffusionPipeline
    assert set(ours.components) - set(stock.components) == {"query_stream", "query_scheduler"}
    assert all(part is getattr(ours, name) for name, part in stock.components.items())
    assert torch.equal(generated(stock), generated(ours))
    assert not [word for word in ("query", "palindiff", "name_or_path") if word in stock.to_json_string()]


def test_an_exported_folder_is_the_stock_folder_again(root, tmp_path):
    export_stable_diffusion(PalindiffPipeline.from_pretrained(root / "checkpoint"), tmp_path / "exported")
    exported, base = files_of(tmp_path / "exported"), files_of(root / "base")
    assert exported.keys() == base.keys()
    for name in base:
        if name.endswith(".safetensors"):
            ours_there, theirs = (load_file(folder / name) for folder in (tmp_path / "exported", root / "base"))
            assert ours_there.keys() == theirs.keys()
            assert all(torch.equal(ours_there[key], theirs[key]) for key in theirs)
        elif name.endswith(".json"):
            assert json.loads(exported[name]) == json.loads(base[name]), name
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "exported")
    assert torch.equal(generated(stock), generated(StableDiffusionPipeline.from_pretrained(root / "base")))


def test_an_export_keeps_the_licence_and_says_that_it_only_generates(ours, tmp_path):
    ours = ours.from_pipe(ours)
    ours.model_card = CARD.replace("license_name: unknown", "license_name: ours").replace("- diffdis\n", "- mine\n")
    export_stable_diffusion(ours, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "license_name: ours" in card
    assert "zero-shot-image-classification" not in card
    assert "- mine" in card
    assert "This folder is stock Stable Diffusion: it generates." in card


IMAGE_TO_IMAGE = {"image": toy_images(1)[0], "strength": 0.7}
MASK = Image.fromarray(np.array([[255] * 8] * 4 + [[0] * 8] * 4, dtype=np.uint8))
INPAINTING = {"image": toy_images(1)[0], "mask_image": MASK, "height": 8, "width": 8}


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [(StableDiffusionImg2ImgPipeline, IMAGE_TO_IMAGE), (StableDiffusionInpaintPipeline, INPAINTING)],
)
def test_other_stock_pipelines_on_our_parts_equal_those_of_the_base_model(root, ours, kind, inputs, tmp_path):
    export_stable_diffusion(ours, tmp_path)
    expected = generated(kind.from_pretrained(root / "base"), **inputs)
    assert torch.equal(generated(kind.from_pipe(ours), **inputs), expected)
    assert torch.equal(generated(kind.from_pretrained(root / "checkpoint"), **inputs), expected)
    assert torch.equal(generated(kind.from_pretrained(tmp_path), **inputs), expected)
    stock_parts = ours.to_stable_diffusion().components
    assert torch.equal(generated(kind(**stock_parts, requires_safety_checker=False), **inputs), expected)
    assert (expected - generated(ours)).abs().max() > 1e-2


def test_automatic_pipelines_are_found_for_the_stock_pipeline(ours):
    found = AutoPipelineForImage2Image.from_pipe(ours.to_stable_diffusion())
    assert type(found) is StableDiffusionImg2ImgPipeline
    assert torch.equal(
        generated(found, **IMAGE_TO_IMAGE), generated(StableDiffusionImg2ImgPipeline.from_pipe(ours), **IMAGE_TO_IMAGE)
    )


def test_ours_is_made_from_a_stock_pipeline_and_a_query_stream(root, ours):
    stock = StableDiffusionPipeline.from_pretrained(root / "base")
    back = PalindiffPipeline.from_pipe(stock, query_stream=ours.query_stream, query_scheduler=ours.query_scheduler)
    assert torch.equal(back.encode_image(toy_images()), ours.encode_image(toy_images()))


def test_the_card_of_a_folder_is_kept_in_memory_and_saved_again(root, tmp_path):
    folder = Path(shutil.copytree(root / "checkpoint", tmp_path / "with_card"))
    (folder / "README.md").write_text(CARD + "\nWritten by hand: γ ≤ 1.\n", encoding="utf-8")
    pipeline = PalindiffPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8").endswith("Written by hand: γ ≤ 1.\n")


def test_a_pipeline_without_a_card_writes_none(ours, tmp_path):
    (tmp_path / "README.md").write_text("somebody's")
    ours.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "somebody's"


def test_no_saved_file_tells_where_a_part_lay(root, ours, tmp_path):
    ours.save_pretrained(tmp_path / "saved")
    export_stable_diffusion(ours, tmp_path / "exported")
    assert not [name for name, data in files_of(tmp_path).items() if str(root).encode() in data]


def test_saving_changes_no_other_file_of_the_folder(ours, tmp_path):
    other = tmp_path / "runs" / "old" / "config.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"b": 1, "_name_or_path": "kept"}')
    ours.save_pretrained(tmp_path)
    assert other.read_text() == '{"b": 1, "_name_or_path": "kept"}'


def test_a_push_is_one_commit_of_the_whole_folder_with_its_card(root, hub, tmp_path):
    repositories, asked = hub
    folder = Path(shutil.copytree(root / "checkpoint", tmp_path / "with_card"))
    write_card(folder, CardFacts(name="toy", datasets=("somebody/images",)))
    pipeline = PalindiffPipeline.from_pretrained(folder)
    address = pipeline.push_to_hub("me/toy", "First", private=True)
    assert address.endswith("/me/toy/commit/main")
    pipeline.save_pretrained(tmp_path / "saved")
    assert repositories["me/toy"] == files_of(tmp_path / "saved")
    assert repositories["me/toy"]["README.md"].decode() == CARD
    assert ("visibility", "private") in asked
    assert len([path for verb, path in asked if "/commit/" in path]) == 1


def test_a_pushed_model_is_loaded_by_its_name_and_keeps_its_card(root, hub, tmp_path):
    repositories, _ = hub
    folder = Path(shutil.copytree(root / "checkpoint", tmp_path / "with_card"))
    write_card(folder, CardFacts(name="toy", datasets=("somebody/images",)))
    push_folder(folder, "me/toy")
    loaded = PalindiffPipeline.from_pretrained("me/toy")
    assert loaded.model_card == CARD
    assert loaded.name_or_path == "me/toy"
    here = PalindiffPipeline.from_pretrained(folder)
    assert torch.equal(generated(loaded), generated(here))
    assert (loaded.encode_image(toy_images()) - here.encode_image(toy_images())).abs().max() <= 1e-5  # alignment
    loaded.push_to_hub("me/second")
    assert repositories["me/second"]["README.md"].decode() == CARD


def test_saving_may_push_as_in_diffusers(ours, hub, tmp_path):
    repositories, _ = hub
    ours.save_pretrained(tmp_path / "toy", push_to_hub=True, repo_id="me/toy", commit_message="First")
    assert repositories["me/toy"].keys() == {*files_of(tmp_path / "toy"), "README.md"}


def test_without_a_card_a_push_leaves_the_repository_s_own_or_calls_all_unknown(ours, hub):
    repositories, _ = hub
    ours.push_to_hub("me/toy")
    assert "license_name: unknown" in repositories["me/toy"]["README.md"].decode()
    repositories["me/toy"]["README.md"] = b"edited on the Hub"
    ours.push_to_hub("me/toy", commit_message="Second")
    assert repositories["me/toy"]["README.md"] == b"edited on the Hub"


def test_hidden_files_stay_here(root, hub, tmp_path):
    repositories, _ = hub
    folder = Path(shutil.copytree(root / "checkpoint", tmp_path / "folder"))
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / ".env").write_text("secret")
    push_folder(folder, "me/toy", subfolder="inside")
    assert {name.partition("/")[0] for name in repositories["me/toy"]} == {"inside"}
    assert not [name for name, data in repositories["me/toy"].items() if data == b"secret"]


def test_a_refusal_of_the_hub_is_told(ours, hub):
    with pytest.raises(HfHubHTTPError, match="You may not write here"):
        ours.push_to_hub("stranger/toy")


def test_a_weight_too_large_for_half_precision_is_not_exported(root, tmp_path):
    pipeline = PalindiffPipeline.from_pretrained(root / "checkpoint")
    with torch.no_grad():
        pipeline.unet.conv_in.bias[0] = 1e5
    export_stable_diffusion(pipeline.to(torch.bfloat16), tmp_path / "bf16", "bf16")
    with pytest.raises(ValueError, match=r"`conv_in.bias` of the part `unet` holds 1 numbers .* in another type"):
        export_stable_diffusion(pipeline.to(torch.float16), tmp_path / "fp16", "fp16")
    assert not (tmp_path / "fp16").exists()
