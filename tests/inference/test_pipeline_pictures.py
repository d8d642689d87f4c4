"""pipeline.py: pictures, their latents and their readings going in; whatever the VAE, the fit and the types."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from palindiff.data.pictures import PictureError, fit_picture
from palindiff.inference.pipeline import PalindiffPipeline
from toys import toy_pictures, toy_pipeline


def test_latents_carry_the_vae_s_factor(towers):
    pipeline, pictures = toy_pipeline(towers), toy_pictures()
    plain = pipeline.encode_latents(pictures)
    pipeline.vae.register_to_config(scaling_factor=0.25)
    assert torch.equal(pipeline.encode_latents(pictures), plain / 4)
    embedded = pipeline.encode_image(pictures, 2)
    assert torch.equal(embedded, pipeline.encode_image(plain / 4, 2))
    assert (embedded - pipeline.encode_image(plain, 2)).abs().max() > 1e-3


def test_an_autoencoder_tiny_serves_as_vae(towers):
    torch.manual_seed(0)
    pipeline = toy_pipeline(towers)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=3,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5,
    ).eval()  # fmt: skip
    pipeline = PalindiffPipeline(**pipeline.components | {"vae": vae, "requires_safety_checker": False})
    pictures = toy_pictures()
    x = torch.stack([torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 127.5 - 1 for picture in pictures])
    with torch.no_grad():
        assert torch.equal(pipeline.encode_latents(pictures), vae.encode(x).latents * 0.5)
    assert pipeline.encode_image(pictures, 2).isfinite().all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_fit_reaches_every_picture(pipeline, fit):
    wide = toy_pictures(1, size_px=16)[0].crop((0, 0, 16, 9))
    fitted = fit_picture(wide, 8, fit)
    assert torch.equal(pipeline.encode_latents([wide], fit), pipeline.encode_latents([fitted]))
    embedded = pipeline.encode_image([fitted], 2)
    assert torch.equal(pipeline.encode_image([wide], 2, fit=fit), embedded)
    assert torch.equal(pipeline.encode_image(pipeline.read_image([wide], fit), 2), embedded)
    assert torch.equal([*pipeline.walk_query([wide], 2, fit=fit)][-1].e_0_hat, embedded)
    crop, pad = (pipeline.encode_latents([wide], each) for each in ("crop", "pad"))
    assert (crop - pad).abs().max() > 1e-2


def test_a_reading_and_latents_give_what_pictures_give(pipeline, towers):
    pictures = toy_pictures()
    embedded = pipeline.encode_image(pictures)
    assert torch.equal(pipeline.encode_image(pipeline.read_image(pictures)), embedded)
    assert torch.equal(pipeline.encode_image(pipeline.encode_latents(pictures)), embedded)
    assert (pipeline.encode_image(pipeline.read_image(pictures), batch_size=2) - embedded).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="Expected 'one_way'"):
        toy_pipeline(towers, fusion="joint").read_image(pictures)


def test_a_picture_may_be_a_file_bytes_or_one_alone(pipeline, tmp_path):
    picture = toy_pictures(1)[0]
    picture.save(tmp_path / "a.png")
    embedded = pipeline.encode_image([picture])
    path = tmp_path / "a.png"
    for given in (picture, path, str(path), path.read_bytes(), [path]):
        assert torch.equal(pipeline.encode_image(given), embedded)
    assert torch.equal(pipeline.encode_latents(picture), pipeline.encode_latents([picture]))


@pytest.mark.parametrize("sample_size", [(4, 4), [4, 4], (4, 8)])
def test_pictures_are_fitted_to_squares_alone(towers, sample_size):
    pipeline, pictures = toy_pipeline(towers), toy_pictures()
    plain = pipeline.encode_latents(pictures)
    pipeline.unet.register_to_config(sample_size=sample_size)
    if set(sample_size) == {4}:
        assert torch.equal(pipeline.encode_latents(pictures), plain)
    else:
        with pytest.raises(ValueError, match=r"`sample_size` is \(4, 8\)\. Expected one side.* pass their latents"):
            pipeline.encode_latents(pictures)
        assert pipeline.encode_image(plain, 2, guidance_scale=4).shape == (3, 32)


def test_latents_of_another_type_are_cast(pipeline):
    z = pipeline.encode_latents(toy_pictures())
    expected = pipeline.encode_image(z.half().float(), 2)
    assert torch.equal(pipeline.encode_image(z.half(), 2), expected)
    assert torch.equal(pipeline.encode_image(z.half().double(), 2), expected)


def test_pictures_that_cannot_be_used_are_refused(pipeline, tmp_path):
    good, cut = tmp_path / "good.png", tmp_path / "cut.png"
    toy_pictures(1, size_px=64)[0].save(good)
    cut.write_bytes(good.read_bytes()[:200])
    for method in (pipeline.encode_image, pipeline.encode_latents, pipeline.read_image):
        with pytest.raises(ValueError, match=r"No pictures were given\. Expected at least one"):
            method([])
        with pytest.raises(PictureError, match=r"cut\.png` cannot be decoded .*Expected a whole, undamaged picture"):
            method([good, cut])
        with pytest.raises(PictureError, match=r"none\.png` does not exist"):
            method([good, tmp_path / "none.png"])
