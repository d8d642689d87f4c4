"""evaluators.py: numbers that equal the metrics' own, with chance levels, and a sheet of samples."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from palindiff.evaluation.evaluators import (
    EvaluationImages,
    SampleSheet,
    chain_use,
    classification,
    image_queries,
    reconstruction,
    retrieval,
    samples,
)
from palindiff.evaluation.retrieval import chance_recall, recall_at_k
from palindiff.evaluation.sheets import contact_sheet
from palindiff.inference.generation import generate_images
from palindiff.seeds import seeded_generator
from toys.models import toy_vae
from toys.recipe import prepare_toy, toy_recipe, write_drawings

PROMPTS = ("a red g", "a green h")


def naming(parts):
    """What retrieval and classification measure while training, by metric."""
    return {row["metric"]: row["value"] for row in parts.evaluation_rows(1)}


def images_of(parts):
    """The validation images' latents, first captions and labels."""
    rows = list(parts.validation_images)
    z, _ = parts.validation_set.images.read(torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.bool))
    return EvaluationImages(z.float(), [row.captions[0] for row in rows], [row.label for row in rows])


def validation_with(folder, change):
    """The drawings, with a change made to the validation images' rows."""
    path = write_drawings(folder) / "validation" / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder)}


def test_recall_is_that_of_the_pipeline_s_own_ranking(toy_parts, tmp_path):
    """Six images of four captions, so that the two ways differ."""

    def share_captions(rows):
        for row in rows[3:]:
            row["captions"][0] = rows[0]["captions"][0]

    data = validation_with(tmp_path / "images", share_captions)
    parts = prepare_toy(toy_recipe(toy_parts, data=data, loop={"seed": 2}), tmp_path)
    captions = [row.captions[0] for row in parts.validation_images]
    different = list(dict.fromkeys(captions))
    images, _ = parts.validation_set.images.read(torch.arange(6), torch.zeros(6, dtype=torch.bool))
    steps = {"num_inference_steps": 2, "guidance_scale": 1}
    scores = parts.pipeline.rank(images.float(), different, **steps)
    from_files = parts.pipeline.rank([row.source for row in parts.validation_images], different, **steps)
    torch.testing.assert_close(scores, from_files, rtol=0, atol=1e-3)  # latents kept as float16
    positives = torch.tensor([[caption == other for other in different] for caption in captions])
    found = naming(parts)
    forth, back = recall_at_k(scores, positives, [1])[1], recall_at_k(scores.T, positives.T, [1])[1]
    assert found["image_to_text_recall_1"] == forth
    assert found["text_to_image_recall_1"] == back
    assert forth != back
    assert [name for name in found if "recall_5" in name or "recall_10" in name] == []  # four captions: no five best


def test_zero_shot_accuracy_is_that_of_labels_in_templates(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, evaluation={"templates": ["a red {}", "{}"]}), tmp_path)
    pipeline, labels = parts.pipeline, [row.label for row in parts.validation_images]
    z, _ = parts.validation_set.images.read(torch.arange(6), torch.zeros(6, dtype=torch.bool))
    scores = pipeline.encode_image(z.float(), 2, 1.0) @ pipeline.encode_labels(list("ghi"), ["a red {}", "{}"]).T
    truth = torch.tensor(["ghi".index(label) for label in labels])
    found = naming(parts)
    is_right = scores.argmax(dim=1) == truth
    assert found["zero_shot_top_1"] == pytest.approx(is_right.float().mean())
    by_class = [is_right[truth == label].float().mean() for label in truth.unique()]
    assert found["zero_shot_mean_class_recall"] == pytest.approx(sum(by_class) / 3)
    assert "zero_shot_top_5" not in found  # of three classes


def test_unlabelled_images_have_no_zero_shot_accuracy(toy_parts, tmp_path):
    data = validation_with(tmp_path / "images", lambda rows: rows[3].pop("label"))
    parts = prepare_toy(toy_recipe(toy_parts, data=data), tmp_path)
    assert not [name for name in naming(parts) if name.startswith("zero_shot")]


def test_at_most_so_many_images_are_evaluated_and_evenly_spread(toy_parts, tmp_path):
    encoded = []
    recipe = toy_recipe(toy_parts, evaluation={"num_images": 3}, machine={"cache_dir": str(tmp_path / "cache")})
    parts = prepare_toy(recipe, tmp_path, lambda what, done, total: encoded.append(total))
    assert set(encoded) & {12, 6, 3} == {12, 3}, "no more validation images are encoded than are looked at"
    assert [row.source.name for row in parts.validation_images] == ["0.png", "2.png", "5.png"]
    captions = [row.captions[0] for row in parts.validation_images]
    z, _ = parts.validation_set.images.read(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    scores = parts.pipeline.rank(z.float(), captions, num_inference_steps=2, guidance_scale=1)
    expected = recall_at_k(scores, torch.eye(3, dtype=torch.bool), [1])[1]
    assert naming(parts)["image_to_text_recall_1"] == expected
    assert naming(parts)["zero_shot_top_1"] in (0, 1 / 3, 2 / 3, 1)


def test_the_sheet_shows_the_prompts_generated_from_their_seeds(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, evaluation={"prompts": PROMPTS}), tmp_path)
    options = parts.recipe.evaluation
    assert samples(parts.pipeline, SampleSheet(tmp_path / "samples" / "sheet.png", "step 7"), options) == []
    generated = generate_images(parts.pipeline, PROMPTS, [0, 1], options.guidance_scale, options.num_inference_steps)
    written = Image.open(tmp_path / "samples" / "sheet.png")
    assert ImageChops.difference(written, contact_sheet(generated, PROMPTS, title="step 7")).getbbox() is None


def test_rows_state_chance_and_number_and_queries_may_be_shared(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts), tmp_path)
    options, data = parts.recipe.evaluation, images_of(parts)
    found = [evaluator(parts.pipeline, data, options) for evaluator in (retrieval, classification)]
    positives = torch.tensor(
        [[caption == other for other in dict.fromkeys(data.captions)] for caption in data.captions]
    )
    assert [row["chance"] for row in found[0]] == [
        chance_recall(relevant, k) for relevant in (positives, positives.T) for k in (1, 5)
    ]
    assert {row["metric"]: row["chance"] for row in found[1]} == {
        "zero_shot_top_1": 1 / 3, "zero_shot_mean_class_recall": 1 / 3
    }  # fmt: skip
    assert {row["n"] for rows in found for row in rows} == {6}
    e_0_hat = image_queries(parts.pipeline, data, options)
    shared = EvaluationImages((), data.captions, data.labels, e_0_hat)
    assert [evaluator(parts.pipeline, shared, options) for evaluator in (retrieval, classification)] == found


def values(rows):
    return {row["metric"]: row["value"] for row in rows}


def test_a_query_that_is_ignored_shows_as_cosines_of_1_and_one_recall(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, query_stream={"query_scale": "sqrt_d"})
    parts = prepare_toy(recipe, tmp_path)
    data, stream = images_of(parts), parts.pipeline.query_stream.eval()
    alive = values(chain_use(parts.pipeline, data, recipe.evaluation))
    steps = [50, 250, 500, 749, 949]
    names = [f"chain_cosine_{name}_t{t}" for name in ("other", "noise") for t in steps]
    recalls = [f"chain_image_to_text_recall_{k}_from_noise" for k in (1, 5)]
    assert list(alive) == [*names, *recalls, *(f"chain_image_to_text_recall_5_own_t{t}" for t in steps)]
    assert all(-1 <= alive[name] < 0.9999 for name in names)
    at_noise = chain_use(parts.pipeline, data, recipe.evaluation.model_copy(update={"naming_steps": 1}))
    by_retrieval = values(retrieval(parts.pipeline, data, recipe.evaluation.model_copy(update={"naming_steps": 1})))
    assert values(at_noise)[recalls[0]] == by_retrieval["image_to_text_recall_1"]
    with torch.no_grad():
        for layer in (*(site.into for site in stream.sites), stream.query_into_head):
            layer.weight.zero_()
    dead = values(chain_use(parts.pipeline, data, recipe.evaluation))
    assert all(dead[name] == pytest.approx(1, abs=1e-6) for name in names)
    assert len({dead[f"chain_image_to_text_recall_5_own_t{t}"] for t in steps} | {dead[recalls[1]]}) == 1


@pytest.mark.parametrize("query_input", ["raw", "normalised"])
def test_cosines_of_chain_use_are_those_by_hand(query_input, toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, query_stream={"query_input": query_input})
    parts = prepare_toy(recipe, tmp_path)
    data, pipeline = images_of(parts), parts.pipeline
    data = EvaluationImages(data.images[:3], ["a", "a", "b"])
    found = values(chain_use(pipeline, data, recipe.evaluation))
    e_0, t = pipeline.encode_text(data.captions), 500
    eps = torch.randn(e_0.shape, generator=seeded_generator("chain_use"))
    alpha = pipeline.query_scheduler.alphas_cumprod[t]
    reading = pipeline.read_image(data.images)

    def predict(clean):
        e_t = pipeline.query_stream.signal_scale * alpha.sqrt() * clean + (1 - alpha).sqrt() * eps
        if query_input == "normalised":
            e_t = e_t / (alpha / e_0.shape[1] + 1 - alpha).sqrt()  # γ is 1
        with torch.no_grad():
            return pipeline.query_stream(pipeline.unet, reading, e_t, torch.full((3,), t))

    cosine = (predict(e_0) * predict(e_0[[2, 2, 0]])).sum(-1).mean()
    assert found[f"chain_cosine_other_t{t}"] == pytest.approx(float(cosine), abs=1e-6)


def test_images_are_named_by_the_mean_of_as_many_samples_as_asked(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, query_stream={"query_scale": "sqrt_d"}, evaluation={"naming_samples": 2})
    parts = prepare_toy(recipe, tmp_path)
    z = images_of(parts).images
    alone = parts.pipeline.encode_image(z, 2) + parts.pipeline.encode_image(z, 2, seed=1)
    found = image_queries(parts.pipeline, images_of(parts), recipe.evaluation)
    assert (found - torch.nn.functional.normalize(alone, dim=-1)).abs().max() <= 1e-6


def test_nothing_is_told_of_a_chain_that_is_not_there(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, query_stream={"text_chain": "none"})
    parts = prepare_toy(recipe, tmp_path / "none")
    assert chain_use(parts.pipeline, images_of(parts), recipe.evaluation) == []
    recipe = toy_recipe(toy_parts)
    parts = prepare_toy(recipe, tmp_path / "equal")
    same = EvaluationImages(images_of(parts).images[:2], ["a", "a"])
    assert chain_use(parts.pipeline, same, recipe.evaluation) == []


def test_reconstruction_is_of_the_mean_latent_image_by_image():
    vae = toy_vae()
    images = torch.randint(256, (70, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    errors = []
    with torch.no_grad():
        for image in images:
            x = image[None].float() / 127.5 - 1
            x_hat = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            errors.append(((x - x_hat) / 2).square().mean().item())
    found = {row["metric"]: row["value"] for row in reconstruction(vae, images)}  # in two batches
    assert found["psnr_db"] == pytest.approx(np.mean([-10 * math.log10(error) for error in errors]), abs=1e-3)
    assert found["pooled_psnr_db"] == pytest.approx(-10 * math.log10(np.mean(errors)), abs=1e-3)
