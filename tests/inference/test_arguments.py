"""arguments.py through the pipeline: every argument that cannot work is refused in one sentence, before any work."""

import numpy as np
import pytest
import torch

from palindiff.data.images import ImageFileError
from toys.models import toy_images


def refusals(pipeline, error, images=("missing.png",), **options):
    """The message of every method that names images, each the same."""
    told = set()
    for name in (
        lambda: pipeline.encode_image(images, **options),
        lambda: list(pipeline.denoise_query(images, **options)),
        lambda: pipeline.classify(images, ["red"], **options),
        lambda: pipeline.rank(images, ["red"], **options),
    ):
        with pytest.raises(error) as refused:
            name()
        told.add(str(refused.value))
    assert len(told) == 1
    return told.pop()


@pytest.mark.parametrize("scale", [0, 0.99, -4, float("nan"), float("inf"), float("-inf"), "4", None])
def test_a_guidance_scale_below_one_is_refused(pipeline, scale):
    told = refusals(pipeline, ValueError, guidance_scale=scale)
    assert told.startswith(f"`guidance_scale` is {scale!r}. Expected a finite number from 1 on")


@pytest.mark.parametrize("scale", [1, 1.0, 4, np.float32(4)])
def test_a_guidance_scale_from_one_on_serves(pipeline, scale):
    assert pipeline.encode_image(toy_images(1), 2, scale).isfinite().all()


@pytest.mark.parametrize("seed", [1.0, "1", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(pipeline, seed):
    assert refusals(pipeline, TypeError, seed=seed).startswith(f"`seed` is {seed!r}. Expected a whole number")


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_steps_that_the_scheduler_does_not_have_are_refused(pipeline, num_steps):
    told = refusals(pipeline, ValueError, num_inference_steps=num_steps)
    assert told.startswith(f"`num_inference_steps` is {num_steps}. Expected 1 to 1000")


@pytest.mark.parametrize("num_steps", [2.0, 2.5, "2", True])
def test_steps_that_are_no_whole_number_are_refused(pipeline, num_steps):
    told = refusals(pipeline, TypeError, num_inference_steps=num_steps)
    assert told.startswith(f"`num_inference_steps` is {num_steps!r}. Expected a whole number")


def test_whole_numbers_of_numpy_serve(pipeline):
    images = toy_images()
    found = pipeline.encode_image(images, np.int64(2), seed=np.int64(3), batch_size=np.int64(2))
    assert torch.equal(found, pipeline.encode_image(images, 2, seed=3, batch_size=2))


@pytest.mark.parametrize("fit", ["cropp", "", None])
def test_a_fit_that_there_is_not_is_refused(pipeline, fit):
    assert refusals(pipeline, ValueError, fit=fit).startswith(f"`fit` is {fit!r}. Expected 'crop'")
    for method in (pipeline.encode_latents, pipeline.read_image):
        with pytest.raises(ValueError, match="`fit` is "):
            method(toy_images(1), fit)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, None])
def test_a_batch_size_below_one_is_refused(pipeline, batch_size):
    for method, others in ((pipeline.encode_image, ()), (pipeline.classify, (["red"],)), (pipeline.rank, (["red"],))):
        with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}. Expected a whole number from 1 on"):
            method(toy_images(), *others, batch_size=batch_size)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(2, 4, 4, 4),
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.tensor(0.0),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}",
)
def test_a_tensor_that_is_no_latents_is_refused(pipeline, tensor):
    told = refusals(pipeline, ValueError, tensor)
    assert told.startswith(f"A tensor of shape {tuple(tensor.shape)} and type {tensor.dtype} was given to be named.")
    assert "Expected latents (b, 3, h, w)" in told
    assert "for pixels pass PIL images" in told


def test_no_latents_at_all_are_refused(pipeline):
    assert refusals(pipeline, ValueError, torch.zeros(0, 3, 4, 4)).startswith("No images were given.")


@pytest.mark.parametrize(("images", "kind"), [([torch.zeros(3, 4, 4)], "Tensor"), ([None], "NoneType")])
def test_what_is_no_image_is_refused(pipeline, images, kind):
    assert refusals(pipeline, TypeError, images).startswith(f"A `{kind}` was given to be encoded. Expected PIL")


def test_arrays_are_images(pipeline):
    pixels = np.stack([np.asarray(image) for image in toy_images()])
    expected = pipeline.encode_latents(toy_images())
    assert torch.equal(pipeline.encode_latents(pixels), expected)
    assert torch.equal(pipeline.encode_latents(list(pixels)), expected)
    assert (pipeline.encode_latents(pixels[0]) - expected[:1]).abs().max() <= 1e-5  # another batch
    with pytest.raises(ImageFileError, match=r"`image` is an array of shape \(8, 8, 3\) and type float64"):
        pipeline.encode_latents([pixels[0] / 255])


def test_what_was_encoded_is_not_encoded_again(pipeline):
    z, reading = pipeline.encode_latents(toy_images()), pipeline.read_image(toy_images())
    for given, kind in ((z, "Tensor"), (reading, "ImageReading")):
        with pytest.raises(TypeError, match=f"A `{kind}` was given to be encoded.*latents need no encoding"):
            pipeline.encode_latents(given)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, "2", True])
def test_a_number_of_samples_that_cannot_be_is_refused(pipeline, num_samples):
    sentence = rf"^`num_samples` is {num_samples!r}\. Expected a whole number from 1 on"
    with pytest.raises(ValueError, match=sentence):
        pipeline.encode_image(("missing.png",), num_samples=num_samples)
