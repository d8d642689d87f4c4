"""image_encoder.py against transformers' own classes; its shape, fingerprint, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

from palindiff.data.images import read_pixels
from palindiff.models.image_encoder import ImageEncoder, ImageEncoderConfig, build_image_encoder
from toys.contrastive import TOY_VIT, toy_image_encoder


def noise_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_default_is_transformers_default_the_vit_b_32():
    with torch.device("meta"):
        config = build_image_encoder(ImageEncoderConfig(), 512).model.config
    assert config.to_diff_dict().keys() <= {"transformers_version", "model_type"} | CLIPVisionConfig().to_dict().keys()
    assert {k: v for k, v in config.to_dict().items() if k != "dtype"} == {
        k: v for k, v in CLIPVisionConfig().to_dict().items() if k != "dtype"
    }


def test_an_image_of_its_size_is_embedded_as_transformers_does():
    encoder, pixels = toy_image_encoder(7), noise_image(16, 16, 3)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    with torch.no_grad():
        inputs = processor(pixels, return_tensors="pt")["pixel_values"]
        expected = F.normalize(encoder.model(inputs).image_embeds, dim=-1)
        v = encoder(read_pixels(pixels, 16)[None])
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-6)  # float32 in another order


def test_embeddings_stay_float32_of_unit_length_under_autocast():
    encoder = toy_image_encoder(7)
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        v = encoder(x)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(3), rtol=0, atol=1e-6)


def test_the_fingerprint_changes_with_weights_and_normalisation_alone():
    one, same, other = toy_image_encoder(7), toy_image_encoder(7), toy_image_encoder(7, seed=4)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert ImageEncoder(one.model, (0.5, 0.5, 0.5)).fingerprint != one.fingerprint
    assert one.half().float().fingerprint != same.fingerprint


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_size_px": 17}, r"`image_size_px` is 17 with `patch_size_px` 8. Expected a multiple"),
        ({"width": 20}, r"`width` is 20 with `head_dim` 8. Expected a multiple"),
    ],
)
def test_a_shape_that_does_not_divide_is_refused(change, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ImageEncoderConfig.model_validate(TOY_VIT.model_dump() | change)
