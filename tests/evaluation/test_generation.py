"""generation.py: rows of a stock Stable Diffusion against the metrics' own values, and what is refused beforehand."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessor

from palindiff.data.images import ImageFileError, ImageSource, decode_image, fit_image, read_pixels, to_tensor
from palindiff.data.rows import CaptionedImage
from palindiff.evaluation import generation as module
from palindiff.evaluation.clip_score import TransformersClip, clip_scores
from palindiff.evaluation.distances import kernel_distance
from palindiff.evaluation.efficientnet import EffLite0Features
from palindiff.evaluation.generation import (
    GenerationConfig,
    GenerationData,
    ImageReadings,
    Instruments,
    chosen_rows,
    generation,
    measure_images,
)
from palindiff.evaluation.launch import Launch
from palindiff.evaluation.retrieval import chance_recall
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.inference.generation import generate_images
from toys.image_features import needs_efficientnet, needs_torch_fidelity
from toys.models import toy_pipeline
from toys.stable_diffusion import write_clip_of, write_sd1

CAPTIONS = ["a red apple", "b", "c d", "a red apple", "e", "f"]
WITHOUT_DISTANCES = {"extractors": (), "num_inference_steps": 2}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock Stable Diffusion, its CLIP, and real images that are no squares."""
    folder = tmp_path_factory.mktemp("stock")
    pipeline = StableDiffusionPipeline.from_pretrained(
        write_sd1(folder, scheduler="DDIMScheduler"), safety_checker=None
    )
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(write_clip_of(folder))
    return pipeline, folder / "clip_1", real_rows(folder / "real")


def real_rows(folder, captions=CAPTIONS):
    folder.mkdir()
    rows = []
    for number, caption in enumerate(captions):
        colours = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((90, 70), Image.NEAREST).save(folder / f"{number}.png")
        path = folder / f"{number}.png"
        rows.append(CaptionedImage(ImageSource(str(path), path=path), (caption, "another caption")))
    return rows


def by_metric(rows):
    return {row["metric"]: row for row in rows}


@needs_torch_fidelity
@needs_efficientnet
def test_rows_of_a_stock_pipeline_are_the_metrics_of_its_images(stock, tmp_path):
    pipeline, clip_folder, rows = stock
    options = GenerationConfig(
        num_inference_steps=2, clip=clip_folder, kid_subset_size=4, num_kid_subsets=3, batch_size=4, seed=3
    )
    found = by_metric(generation(pipeline, GenerationData(rows, tmp_path), options).rows)
    files = sorted((tmp_path / "images").iterdir())
    generated = torch.stack([to_tensor(decode_image(file)) for file in files])
    real = torch.stack([to_tensor(fit_image(decode_image(row.source), 64)) for row in rows])
    extractor = EffLite0Features()
    kd, fd = found["kd_efflite0"], found["fd_efflite0"]
    mean, deviation = kernel_distance(extractor(generated), extractor(real), 3, 4)
    assert kd["value"] == pytest.approx(mean, rel=1e-3)  # batches of four
    assert kd["subset_std"] == pytest.approx(deviation, rel=1e-2)
    assert fd["value"] is None
    assert "6 images for 1,280 dimensions" in fd["reason"]
    clip = TransformersClip(clip_folder)
    scores = clip_scores(clip.embed_images(generated), clip.embed_text(CAPTIONS))
    assert found["clip_score"]["value"] == pytest.approx(scores.mean().item(), abs=1e-3)
    facts = {"n": 6, "size_px": 64, "fit": "crop, Lanczos, antialiased", "file_format": "png", "seed": 3,
             "guidance_scale": 4.0, "num_inference_steps": 2}  # fmt: skip
    assert all(row[key] == fact for row in (kd, fd, found["clip_score"]) for key, fact in facts.items())
    assert kd["extractor"] == "EfficientNet-Lite0, 224 px, bicubic, antialiased"
    assert not {"fid", "kid"} & found.keys()


def test_recall_is_that_of_the_images_of_different_captions(stock, tmp_path):
    pipeline, _, rows = stock
    found = by_metric(generation(pipeline, GenerationData(rows, tmp_path), GenerationConfig(**WITHOUT_DISTANCES)).rows)
    kept = [0, 1, 2, 4, 5]  # the fourth repeats a caption
    generated = torch.stack([read_pixels(tmp_path / "images" / f"{i:06d}.png", 64) for i in kept])
    real = torch.stack([read_pixels(rows[i].source, 64) for i in kept])
    expected = {row["k"]: row for row in thumbnail_recall(generated, torch.arange(5), real, [1, 5])}
    assert found.keys() == {"caption_to_generated_recall_1", "caption_to_generated_recall_5"}
    for k in (1, 5):
        row = found[f"caption_to_generated_recall_{k}"]
        assert row["value"] == expected[k]["recall"]
        assert row["chance"] == chance_recall(torch.eye(5, dtype=torch.bool), k)
        assert (row["n"], row["num_candidates"]) == (5, 5)


def test_real_images_in_place_of_generated_ones_are_recognised(stock):
    """Recall is 1, and with extractors the distances would be those of a set to itself."""
    _, _, rows = stock
    options = GenerationConfig(**WITHOUT_DISTANCES, size_px=32)
    files = [row.source.path for row in rows]
    found = by_metric(measure_images(files, rows, options, Instruments(options)).rows)
    assert found["caption_to_generated_recall_1"]["value"] == 1
    assert found["caption_to_generated_recall_1"]["size_px"] == 32


def test_a_checkpoint_of_ours_is_measured_too(encoder_folder, tmp_path, stock):
    pipeline, rows = toy_pipeline(encoder_folder), stock[2]
    options = GenerationConfig(**WITHOUT_DISTANCES, size_px=16, num_images=3)
    found = generation(pipeline, GenerationData(rows, tmp_path), options).rows
    assert [row["metric"] for row in found] == ["caption_to_generated_recall_1"]
    expected = generate_images(pipeline, [CAPTIONS[2]], [int(Image.open(tmp_path / "images/000001.png").text["seed"])],
                               4.0, 2, size_px=16)[0]  # fmt: skip
    generated = np.asarray(Image.open(tmp_path / "images/000001.png")).astype(int)
    assert np.abs(np.asarray(expected) - generated).max() <= 1


def test_only_the_first_process_measures(stock, tmp_path):
    pipeline, _, rows = stock
    options = GenerationConfig(**WITHOUT_DISTANCES)
    parts = [GenerationData(rows, tmp_path, Launch(process=process, num_processes=2)) for process in (1, 0)]
    others, found = [generation(pipeline, part, options) for part in parts]
    assert others is None
    assert {row["n"] for row in found.rows} == {5}


def test_real_images_are_read_once_where_their_readings_are_known(stock, tmp_path, monkeypatch):
    pipeline, _, rows = stock
    options, read, read_squares = GenerationConfig(**WITHOUT_DISTANCES), [], module.read_squares
    first = generation(pipeline, GenerationData(rows, tmp_path), options)
    monkeypatch.setattr(module, "read_squares", lambda *given: read.append(given) or read_squares(*given))
    of_another_size = ImageReadings(first.real.size_px + 1, first.real.by_reader)
    lacking = ImageReadings(first.real.size_px, {})
    for known, num_read in ((first.real, 1), (of_another_size, 2), (lacking, 2)):  # the generated ones always
        read.clear()
        assert generation(pipeline, GenerationData(rows, tmp_path, known=known), options).rows == first.rows
        assert len(read) == num_read


def test_rows_are_spread_evenly(stock):
    rows = stock[2]
    chosen = chosen_rows(rows, GenerationConfig(num_images=3, extractors=()))
    assert [row.source.path.name for row in chosen] == ["0.png", "2.png", "5.png"]
    assert chosen_rows(rows, GenerationConfig(extractors=())) == rows


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_images": 7}, "`num_images` is 7 and the data have 6 images.*Set `num_images`"),
        ({"num_images": 6}, "6 images and a subset size of 1,000.*set `kid_subset_size` to at most 6"),
        ({"num_images": 4, "kid_subset_size": 5}, "4 images and a subset size of 5"),
        ({"num_images": 7, "extractors": ()}, "`num_images` is 7"),
    ],
)
def test_too_few_images_are_refused_before_any_is_generated(stock, tmp_path, options, sentence):
    pipeline, _, rows = stock
    with pytest.raises(ValueError, match=sentence):
        generation(pipeline, GenerationData(rows, tmp_path / "new"), GenerationConfig(**options))
    assert not (tmp_path / "new").exists()


def test_generated_images_that_are_missing_or_broken_are_refused(stock, tmp_path):
    rows, options = stock[2], GenerationConfig(**WITHOUT_DISTANCES)
    files = [row.source.path for row in rows]
    with pytest.raises(ValueError, match=r"5 generated images were found for 6 captions.*Set `num_images`"):
        measure_images(files[:5], rows, options, Instruments(options))
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:200])
    with pytest.raises(ImageFileError, match=r"broken.png"):
        measure_images([*files[:5], tmp_path / "broken.png"], rows, options, Instruments(options))


def test_an_image_without_caption_is_refused(stock):
    rows = [*stock[2][:2], CaptionedImage(stock[2][2].source, ())]
    with pytest.raises(ValueError, match="has no caption, as 0 other images"):
        chosen_rows(rows, GenerationConfig(extractors=()))


@pytest.mark.parametrize("options", [{"inception_weights": "none.pth", "extractors": ()}, {"clip": "no-folder"}])
def test_missing_weights_are_refused_before_an_image_is_generated(stock, tmp_path, options):
    pipeline, _, rows = stock
    options = GenerationConfig(**{"extractors": (), "kid_subset_size": 2} | options)
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match="Expected"):
        generation(pipeline, GenerationData(rows, tmp_path / "new"), options)
    assert not (tmp_path / "new").exists()
