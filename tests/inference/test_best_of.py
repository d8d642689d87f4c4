"""best_of.py: the candidates are the pipeline's own images, and the one closest to its prompt is chosen."""

import numpy as np
import pytest
import torch

from palindiff.inference.best_of import prompt_cosines
from palindiff.inference.generation import generate_images
from toys.models import toy_pipeline

OPTIONS = {"guidance_scale": 2.0, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline(encoder_folder):
    return toy_pipeline(encoder_folder)


def test_the_candidate_closest_to_its_prompt_is_chosen(pipeline):
    prompts, seeds = ["a red apple", "b"], [3, 10]
    found = list(pipeline.best_of(prompts, 4, seeds, **OPTIONS, batch_size=3, naming_steps=2))
    for best, prompt, first in zip(found, prompts, seeds, strict=True):
        own = range(first, first + 4)
        images = generate_images(pipeline, [prompt] * 4, list(own), **OPTIONS)
        z = torch.cat([
            pipeline(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **OPTIONS).images
            for seed in own
        ])  # fmt: skip
        cosines = (pipeline.encode_image(z, 2) @ pipeline.encode_text([prompt]).T)[:, 0].tolist()
        assert list(best.cosines) == list(own)
        assert list(best.cosines.values()) == pytest.approx(cosines, abs=1e-5)
        assert best.seed == first + int(np.argmax(cosines))
        assert best.cosine == max(best.cosines.values())
        assert np.array_equal(np.asarray(best.image), np.asarray(images[best.seed - first]))


def test_candidates_that_are_not_finite_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "encode_text", lambda captions: torch.full((1, 12), torch.nan))
    z = torch.zeros(2, pipeline.unet.config.in_channels, 8, 8)
    monkeypatch.setattr(pipeline, "encode_image", lambda z, steps: torch.ones(len(z), 12))
    with pytest.raises(ValueError, match=r"The candidates of `a` are not finite in torch\.float32"):
        prompt_cosines(pipeline, z, "a")


def test_what_cannot_be_chosen_from_is_refused(pipeline):
    with pytest.raises(ValueError, match="1 candidates of 1 prompts with 1 seeds were asked for"):
        list(pipeline.best_of(["a"], 1, [0]))
    with pytest.raises(ValueError, match="2 prompts with 1 seeds"):
        list(pipeline.best_of(["a", "b"], 2, [0]))
    with pytest.raises(ValueError, match="Expected 1 to 1000"):
        list(pipeline.best_of(["a"], 2, [0], **OPTIONS, naming_steps=2000))
