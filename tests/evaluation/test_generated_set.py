"""generated_set.py: an image for each caption whatever the batch, resumed after a kill, no mixed settings."""

import json

import numpy as np
import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from palindiff.evaluation.generated_set import (
    GeneratedSet,
    GenerationSettings,
    captions_sha256,
    generate_set,
    image_seed,
    pipeline_fingerprint,
)
from palindiff.inference.generation import generate_images
from toys.stable_diffusion import toy_safety, write_sd1

CAPTIONS = ["a red apple", "b", "c d", "a red apple", "e"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = write_sd1(tmp_path_factory.mktemp("stock"), scheduler="DDIMScheduler")
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def generated_set(folder, **changes):
    settings = {
        "model_fingerprint": "toy", "captions_sha256": captions_sha256(CAPTIONS), "num_images": len(CAPTIONS),
        "guidance_scale": 4.0, "num_inference_steps": 2, "seed": 0, "size_px": None,
    }  # fmt: skip
    return GeneratedSet(folder, GenerationSettings(**settings | changes))


def pixels_of(found):
    return [np.asarray(Image.open(file)).astype(int) for file in found.files]


@pytest.fixture(scope="module")
def complete(pipeline, tmp_path_factory):
    found = generated_set(tmp_path_factory.mktemp("complete"))
    generate_set(pipeline, CAPTIONS, found, batch_size=2)
    return found


def test_each_image_is_the_pipeline_s_own_from_its_seed(pipeline, complete):
    """One at a time: a batch changes an image by rounding alone. Equal captions have other noise."""
    for number, (caption, pixels) in enumerate(zip(CAPTIONS, pixels_of(complete), strict=True)):
        expected = generate_images(pipeline, [caption], [image_seed(0, number)], 4.0, 2)[0]
        assert np.abs(np.asarray(expected) - pixels).max() <= 1
    first, *_, again, _ = pixels_of(complete)
    assert np.abs(first - again).max() > 1
    metadata = Image.open(complete.file(1)).text
    expected = {"prompt": "b", "seed": str(image_seed(0, 1)), "guidance_scale": "4", "num_inference_steps": "2"}
    assert metadata == expected
    assert {image_seed(0, n) for n in range(9)}.isdisjoint({image_seed(1, n) for n in range(9)})


def test_a_killed_run_resumes_with_the_missing_images(pipeline, complete, tmp_path):
    found, made = generated_set(tmp_path), []

    def killed(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_set(pipeline, CAPTIONS, found, 2, killed)
    assert [file.is_file() for file in found.files] == [True, True, False, False, False]
    (tmp_path / "images" / ".000002.png.123").write_bytes(b"half an image")
    times = [file.stat().st_mtime_ns for file in found.files[:2]]
    generate_set(pipeline, CAPTIONS, found, 2, lambda what, done, total: made.append((done, total)))
    assert made == [(2, 5), (4, 5), (5, 5)]
    assert [file.stat().st_mtime_ns for file in found.files[:2]] == times
    assert all((a == b).all() for a, b in zip(pixels_of(found), pixels_of(complete), strict=True))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [file.name for file in found.files]


def test_processes_share_the_images(pipeline, complete, tmp_path):
    found = generated_set(tmp_path)
    generate_set(pipeline, CAPTIONS, found, 2, process=1, num_processes=2)
    assert [file.is_file() for file in found.files] == [False, True, False, True, False]
    generate_set(pipeline, CAPTIONS, found, 2, process=0, num_processes=2)
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(pixels_of(found), pixels_of(complete), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance_scale": 3.0}, "guidance_scale 4.0 -> 3.0"),
        ({"seed": 1, "size_px": 32}, "seed 0 -> 1; size_px None -> 32"),
        ({"model_fingerprint": "other"}, "model_fingerprint toy -> other"),
        ({"captions_sha256": captions_sha256(CAPTIONS[::-1])}, "captions_sha256"),
    ],
)
def test_a_folder_of_other_settings_is_refused(pipeline, complete, change, sentence):
    with pytest.raises(ValueError, match=f"images of other settings: {sentence}.*Use another folder"):
        generate_set(pipeline, CAPTIONS, generated_set(complete.path, **change), 2)


def test_folders_of_other_files_are_refused(pipeline, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(ValueError, match="holds other files"):
        generate_set(pipeline, CAPTIONS, generated_set(tmp_path), 2)
    (tmp_path / "generation.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(ValueError, match=r"cannot be read.*Remove the folder"):
        generate_set(pipeline, CAPTIONS, generated_set(tmp_path), 2)


def test_a_safety_checker_and_too_many_steps_are_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="num_inference_steps"):
        generate_set(pipeline, CAPTIONS, generated_set(tmp_path, num_inference_steps=1001), 2)
    checked = StableDiffusionPipeline(**{**pipeline.components, **toy_safety()})
    with pytest.raises(ValueError, match=r"has a safety checker.*Set `pipeline.safety_checker = None`"):
        generate_set(checked, CAPTIONS, generated_set(tmp_path), 2)
    assert not any(tmp_path.iterdir())


def test_the_size_is_that_of_the_images(pipeline, tmp_path):
    found = generated_set(tmp_path, size_px=32)
    generate_set(pipeline, CAPTIONS, found, 5)
    assert {pixels.shape for pixels in pixels_of(found)} == {(32, 32, 3)}


def test_the_fingerprint_changes_with_all_that_decides_an_image(pipeline):
    known = pipeline_fingerprint(pipeline)
    assert pipeline_fingerprint(StableDiffusionPipeline(**pipeline.components)) == known
    other_scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    parts = pipeline.components | {"scheduler": other_scheduler}
    assert pipeline_fingerprint(StableDiffusionPipeline(**parts)) != known
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        weight = next(part.parameters())
        weight.data += 1
        assert pipeline_fingerprint(pipeline) != known
        weight.data -= 1
