"""generation.py: the batch size changes no image, and each has its own seed."""

import numpy as np
import pytest

from palindiff.inference.generation import generate_images
from toys.models import toy_checkpoint


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    from palindiff.inference.pipeline import PalindiffPipeline

    return PalindiffPipeline.from_pretrained(toy_checkpoint(tmp_path_factory.mktemp("toy")))


def test_a_batch_changes_no_image(pipeline):
    prompts, seeds = ["a red apple"] * 3 + ["b"] * 2, [0, 1, 2, 0, 1]
    one, three, five = (
        [np.asarray(image) for image in generate_images(pipeline, prompts, seeds, 4.0, 3, size)] for size in (1, 3, 5)
    )
    for i in range(5):  # the same bytes: at this size no product is large enough to be summed in another order
        assert np.array_equal(one[i], three[i])
        assert np.array_equal(one[i], five[i])
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], one[3])


def test_an_image_is_the_pipeline_s_own_for_its_seed(pipeline):
    import torch

    generated = generate_images(pipeline, ["a red apple"], [7], guidance_scale=2.0, num_inference_steps=2)[0]
    stock = pipeline(
        "a red apple", guidance_scale=2.0, num_inference_steps=2, generator=torch.Generator().manual_seed(7)
    )
    assert np.array_equal(np.asarray(generated), np.asarray(stock.images[0]))


def test_as_many_seeds_as_prompts_are_wanted(pipeline):
    with pytest.raises(ValueError, match="2 prompts and 1 seeds were given to `generate_images`"):
        generate_images(pipeline, ["a", "b"], [0])
