"""pipeline.py: images, their latents and their readings going in; whatever the VAE, the fit and the types."""

import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from palindiff.data.images import ImageFileError, fit_image
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import FUSIONS
from toys.models import toy_images, toy_pipeline


def test_latents_carry_the_vae_s_factor(encoder_folder):
    pipeline, images = toy_pipeline(encoder_folder), toy_images()
    plain = pipeline.encode_latents(images)
    pipeline.vae.register_to_config(scaling_factor=0.25)
    assert torch.equal(pipeline.encode_latents(images), plain / 4)
    embedded = pipeline.encode_image(images, 2)
    assert torch.equal(embedded, pipeline.encode_image(plain / 4, 2))
    assert (embedded - pipeline.encode_image(plain, 2)).abs().max() > 1e-3


def test_a_tiny_vae_serves_as_vae(encoder_folder):
    torch.manual_seed(0)
    pipeline = toy_pipeline(encoder_folder)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=3,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5,
    ).eval()  # fmt: skip
    pipeline = PalindiffPipeline(**pipeline.components | {"vae": vae, "requires_safety_checker": False})
    images = toy_images()
    x = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])
    with torch.no_grad():
        assert torch.equal(pipeline.encode_latents(images), vae.encode(x).latents * 0.5)
    assert pipeline.encode_image(images, 2).isfinite().all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_fit_reaches_every_image(pipeline, fit):
    wide = toy_images(1, size_px=16)[0].crop((0, 0, 16, 9))
    fitted = fit_image(wide, 8, fit)
    assert torch.equal(pipeline.encode_latents([wide], fit), pipeline.encode_latents([fitted]))
    embedded = pipeline.encode_image([fitted], 2)
    assert torch.equal(pipeline.encode_image([wide], 2, fit=fit), embedded)
    assert torch.equal(pipeline.encode_image(pipeline.read_image([wide], fit), 2), embedded)
    assert torch.equal([*pipeline.denoise_query([wide], 2, fit=fit)][-1].e_0_hat, embedded)
    crop, pad = (pipeline.encode_latents([wide], each) for each in ("crop", "pad"))
    assert (crop - pad).abs().max() > 1e-2


TYPES = {
    "a half U-Net beside a full VAE and stream": {"unet": torch.bfloat16},
    "a half stream": {"query_stream": torch.bfloat16},
    "a half U-Net and stream beside a full VAE": {"unet": torch.bfloat16, "query_stream": torch.bfloat16},
    "a half VAE": {"vae": torch.bfloat16},
    "three types": {"vae": torch.float16, "unet": torch.bfloat16},
}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("norms", ["own", "shared"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_parts_of_several_types_name_and_read_alike(encoder_folder, fusion, norms, types):
    settings = {"fusion": fusion, "query_norms": norms}
    full, pipeline = (toy_pipeline(encoder_folder, **settings) for _ in range(2))
    for part, dtype in TYPES[types].items():
        getattr(pipeline, part).to(dtype)
    images = toy_images()
    embedded = pipeline.encode_image(images, 2, 3.0)
    assert torch.equal(pipeline.encode_image(pipeline.read_image(images), 2, 3.0), embedded)
    assert embedded.dtype == torch.float32
    assert (embedded * full.encode_image(images, 2, 3.0)).sum(-1).min() > 0.98  # bf16 has eight bits


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_reading_and_latents_give_what_images_give(encoder_folder, fusion):
    pipeline, images = toy_pipeline(encoder_folder, fusion=fusion), toy_images()
    embedded = pipeline.encode_image(images)
    assert torch.equal(pipeline.encode_image(pipeline.read_image(images)), embedded)
    assert torch.equal(pipeline.encode_image(pipeline.encode_latents(images)), embedded)
    assert (pipeline.encode_image(pipeline.read_image(images), batch_size=2) - embedded).abs().max() <= 1e-5
    assert torch.equal(pipeline.encode_image(pipeline.read_image(pipeline.encode_latents(images))), embedded)
    half = pipeline.read_image(images).to(dtype=torch.float16)
    assert (pipeline.encode_image(half) - embedded).abs().max() <= 0.05  # fp16 has 11 bits
    assert pipeline.encode_image(half).dtype == torch.float32


def test_an_image_may_be_a_file_bytes_or_one_alone(pipeline, tmp_path):
    image = toy_images(1)[0]
    image.save(tmp_path / "a.png")
    embedded = pipeline.encode_image([image])
    path = tmp_path / "a.png"
    for given in (image, path, str(path), path.read_bytes(), [path]):
        assert torch.equal(pipeline.encode_image(given), embedded)
    assert torch.equal(pipeline.encode_latents(image), pipeline.encode_latents([image]))


@pytest.mark.parametrize("sample_size", [(4, 4), [4, 4], (4, 8)])
def test_images_are_fitted_to_squares_alone(encoder_folder, sample_size):
    pipeline, images = toy_pipeline(encoder_folder), toy_images()
    plain = pipeline.encode_latents(images)
    pipeline.unet.register_to_config(sample_size=sample_size)
    if set(sample_size) == {4}:
        assert torch.equal(pipeline.encode_latents(images), plain)
    else:
        with pytest.raises(ValueError, match=r"`sample_size` is \(4, 8\)\. Expected one side.* pass their latents"):
            pipeline.encode_latents(images)
        assert pipeline.encode_image(plain, 2, guidance_scale=4).shape == (3, 32)


def test_latents_of_another_type_are_cast(pipeline):
    z = pipeline.encode_latents(toy_images())
    expected = pipeline.encode_image(z.half().float(), 2)
    assert torch.equal(pipeline.encode_image(z.half(), 2), expected)
    assert torch.equal(pipeline.encode_image(z.half().double(), 2), expected)


def test_images_that_cannot_be_used_are_refused(pipeline, tmp_path):
    good, cut = tmp_path / "good.png", tmp_path / "cut.png"
    toy_images(1, size_px=64)[0].save(good)
    cut.write_bytes(good.read_bytes()[:200])
    for method in (pipeline.encode_image, pipeline.encode_latents, pipeline.read_image):
        with pytest.raises(ValueError, match=r"No images were given\. Expected at least one"):
            method([])
        with pytest.raises(ImageFileError, match=r"cut\.png` cannot be decoded .*Expected a whole, undamaged image"):
            method([good, cut])
        with pytest.raises(ImageFileError, match=r"none\.png` does not exist"):
            method([good, tmp_path / "none.png"])


class CountedImages:
    """Images that are read one at a time; counts how many are alive at once."""

    def __init__(self, number):
        self.images, self.alive, self.most = toy_images(number), 0, 0

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        for image in self.images:
            copy = image.copy()
            self.alive += 1
            weakref.finalize(copy, self.count_down)
            self.most = max(self.most, self.alive)
            yield copy
            del copy

    def count_down(self):
        self.alive -= 1


def test_images_are_read_one_at_a_time_and_counted_by_batch(pipeline):
    counted, heard = CountedImages(5), []
    found = pipeline.encode_image(counted, 2, batch_size=2, progress=lambda *counts: heard.append(counts))
    assert torch.equal(found, pipeline.encode_image(toy_images(5), 2, batch_size=2))
    assert counted.most <= 2  # the one being fitted and the next
    assert heard == [("images", 2, 5), ("images", 4, 5), ("images", 5, 5)]
