"""demo_sections.py: what the page shows is what the model gives, for captions and images that nobody picked."""

import sys

import numpy as np
import pytest

from palindiff.data.images import decode_image
from palindiff.experiments.demo_sections import (
    NUM_DENOISING_STEPS,
    PLOTS,
    denoised_images,
    naming_steps,
    retrieved_images,
    training_curves,
)
from palindiff.inference.defaults import GENERATION_STEPS
from palindiff.inference.generation import generate_images
from toys.page import Page


def pixels(image):
    return np.asarray(image).astype(int)


def image_of(concepts, i):
    return pixels(decode_image(concepts.rows[i].source))


def test_retrieval_shows_the_best_images_of_a_caption_and_marks_the_right_one(embedded):
    places = [1, 4, 7, 10]
    for concepts in embedded:
        retrieved = retrieved_images(concepts)
        assert [caption for caption, _ in retrieved] == [concepts.captions[i] for i in places]
        for i, (_, found) in zip(places, retrieved, strict=True):
            best = concepts.scores[:, i].topk(5)
            for figure, j, score in zip(found, best.indices.tolist(), best.values.tolist(), strict=True):
                assert (pixels(figure.image) == image_of(concepts, j)).all()
                assert figure[1:] == (f"{score:.2f}", concepts.captions[j], j == i)


def test_denoised_images_go_from_noise_to_the_generated_image(model):
    figures = denoised_images(model.pipeline, "flat ta", seed=5)
    times = [int(figure.caption.removeprefix("t = ")) for figure in figures]
    assert [figure.alt for figure in figures] == [f"flat ta, at t = {t}" for t in times]
    assert len(figures) == NUM_DENOISING_STEPS
    assert times == sorted(times, reverse=True)
    model.pipeline.scheduler.set_timesteps(GENERATION_STEPS)
    assert (times[0], times[-1]) == (999, int(model.pipeline.scheduler.timesteps[-1]))
    (generated,) = generate_images(model.pipeline, ["flat ta"], [5], guidance_scale=4.0)
    assert abs(pixels(figures[-1].image) - pixels(generated)).max() <= 1  # of 255, rounded
    assert abs(pixels(figures[0].image) - pixels(generated)).max() > 20


def test_naming_is_shown_step_by_step(model, embedded):
    concepts = embedded[0]
    shown = naming_steps(model.pipeline, concepts)
    assert shown["image"].alt == concepts.captions[6]
    expected = list(model.pipeline.denoise_query([concepts.rows[6].source], 8, 1.0))
    assert [step["t"] for step in shown["steps"]] == [step.t_e for step in expected]
    assert shown["steps"][0]["t"] == 999
    for step, of_step in zip(shown["steps"], expected, strict=True):
        noisy = (of_step.e_t / of_step.e_t.norm(dim=-1, keepdim=True))[0] @ concepts.e.T
        for (ranked, rank), scores in ((step["noisy"], noisy), (step["predicted"], of_step.e_0_hat[0] @ concepts.e.T)):
            assert [each.name for each in ranked] == [concepts.captions[j] for j in scores.topk(3).indices]
            assert rank == 1 + int((scores > scores[6]).sum())
    assert shown["cosine"] == pytest.approx(float((expected[0].e_0_hat * expected[-1].e_0_hat).sum()), abs=1e-5)


def test_naming_without_text_diffusion_is_one_step(model, embedded):
    """`text_chain: none` has no noisy query to show; the section shows the one prediction."""
    stream = model.pipeline.query_stream
    try:
        stream.register_to_config(text_chain="none")
        shown = naming_steps(model.pipeline, embedded[0])
    finally:
        stream.register_to_config(text_chain="diffusion")
    assert [step["t"] for step in shown["steps"]] == [0]


def test_the_log_is_plotted_and_what_it_lacks_is_named():
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    log = [{"step": step, "generation": 1 / step, "alignment": 4 / step} for step in range(1, 9)]
    plots = training_curves(log)
    assert len(plots) == len(PLOTS)
    read = Page(f"<div>{''.join(plots)}</div>")
    assert read.tags.count("svg") == 2
    assert read.of("p") == ["recall at 10, validation: fewer than two values in the log."]
    assert {"generation: 0.125", "alignment: 0.5"} <= set(read.of("text"))


def test_without_matplotlib_nothing_is_plotted(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert training_curves([{"step": step, "generation": 1.0} for step in range(3)]) == []
