"""pipeline.py at toy size: stock generation to the bit, Algorithm 3 by hand, and what it refuses."""

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_diffusion import first_noise
from palindiff.objectives.diffdis import DiffDisConfig, DiffDisObjective
from toys.models import toy_images, toy_pipeline

PROMPTS = ["a red apple", ""]
PARTS = ("unet", "vae", "text_encoder", "query_stream")


def generated(pipeline):
    """Generate with float32 pixels, which show what 8 bits would hide."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipeline(PROMPTS, num_inference_steps=3, guidance_scale=4, generator=generators, output_type="np").images


def train_two_steps(pipeline):
    """Two steps of both tasks, with random latents in the place of images."""
    with torch.no_grad():
        caption, empty = (pipeline.caption_encoder.encode([text]) for text in PROMPTS)
    objective = DiffDisObjective(
        pipeline.unet, pipeline.query_stream, pipeline.scheduler, pipeline.query_scheduler, empty.c, DiffDisConfig()
    ).train()
    optimizer = torch.optim.AdamW(objective.parameter_groups(1e-2, 1e-2))
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        z = torch.randn(2, 3, 4, 4, generator=generator)
        batch = {"z_mean": z, "z_std": torch.zeros_like(z), "c": torch.cat([caption.c, empty.c]),
                 "e_0": torch.cat([caption.e, empty.e]), "caption_id": torch.arange(2)}  # fmt: skip
        optimizer.zero_grad()
        losses = objective(batch, objective.draw(2, generator))
        assert {"generation", "alignment"} <= losses.keys()
        losses["loss"].backward()
        optimizer.step()
    objective.eval()


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
def test_generation_is_stock_stable_diffusion_to_the_bit(encoder_folder, encoder, tmp_path):
    pipeline = toy_pipeline(encoder_folder, encoder)
    pipeline.save_pretrained(tmp_path / "before")
    stock = generated(StableDiffusionPipeline.from_pretrained(tmp_path / "before"))
    assert np.array_equal(generated(PalindiffPipeline.from_pretrained(tmp_path / "before")), stock)
    assert stock.std() > 0.05  # an image, not a grey square


def test_generation_is_stock_after_training_both_tasks(encoder_folder, tmp_path):
    pipeline = toy_pipeline(encoder_folder)
    untrained = generated(pipeline)
    train_two_steps(pipeline)
    pipeline.save_pretrained(tmp_path)
    stock = generated(StableDiffusionPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generated(PalindiffPipeline.from_pretrained(tmp_path)), stock)
    assert np.abs(stock - untrained).max() > 1e-2


@pytest.mark.parametrize("loader", [DiffusionPipeline, AutoPipelineForText2Image])
def test_generic_loaders_take_a_saved_folder_for_stable_diffusion(encoder_folder, loader, tmp_path):
    pipeline = toy_pipeline(encoder_folder)
    pipeline.save_pretrained(tmp_path)
    generic = loader.from_pretrained(tmp_path)
    assert type(generic) is StableDiffusionPipeline
    assert np.array_equal(generated(generic), generated(StableDiffusionPipeline.from_pretrained(tmp_path)))


def test_a_folder_that_says_palindiff_pipeline_still_loads(encoder_folder, tmp_path):
    pipeline = toy_pipeline(encoder_folder)
    pipeline.save_pretrained(tmp_path)
    loaded = PalindiffPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "PalindiffPipeline"}))
    old = PalindiffPipeline.from_pretrained(tmp_path)
    assert type(loaded) is type(old) is PalindiffPipeline
    images = toy_images()
    assert torch.equal(loaded.encode_image(images), old.encode_image(images))


def aligned(pipeline):
    """Copy every weight to memory of its own: products with a file's unaligned bytes sum in another order."""
    for part in PARTS:
        for weight in getattr(pipeline, part).parameters():
            weight.data = weight.data.clone()
    return pipeline


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
def test_a_saved_pipeline_is_the_same_pipeline(encoder_folder, encoder, tmp_path):
    saved = toy_pipeline(encoder_folder, encoder)
    saved.save_pretrained(tmp_path)
    loaded = PalindiffPipeline.from_pretrained(str(tmp_path))
    for part in PARTS:
        ours, theirs = (getattr(each, part).state_dict() for each in (saved, loaded))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    images = toy_images()
    assert torch.equal(aligned(loaded).encode_image(images), aligned(saved).encode_image(images))
    assert torch.equal(loaded.encode_text(PROMPTS), saved.encode_text(PROMPTS))
    assert (
        dict(loaded.query_scheduler.config).items()
        >= {"prediction_type": "sample", "timestep_spacing": "trailing"}.items()
    )
    assert loaded.name_or_path == str(tmp_path)


def test_the_index_names_the_package_and_not_a_module_of_it(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["query_stream"] == ["palindiff", "QueryStream"]
    assert index["query_scheduler"] == ["diffusers", "DDIMScheduler"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "model_index.json",
        "query_scheduler",
        "scheduler",
        "tokenizer",
        *PARTS,
    }
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]


def test_saving_and_loading_warn_of_nothing(pipeline, tmp_path, recwarn):
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(handler)
    try:
        pipeline.save_pretrained(tmp_path)
        PalindiffPipeline.from_pretrained(tmp_path)
    finally:
        for name in ("diffusers", "transformers"):
            logging.getLogger(name).removeHandler(handler)
    assert told == []
    assert [str(warning.message) for warning in recwarn] == []


def test_loading_takes_a_type_for_all_parts_or_for_one(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = PalindiffPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {getattr(loaded, part).dtype for part in PARTS} == {torch.bfloat16}
    assert loaded.encode_image(toy_images()).dtype == torch.float32
    loaded = PalindiffPipeline.from_pretrained(tmp_path, dtype={"text_encoder": torch.bfloat16})
    assert (loaded.text_encoder.dtype, loaded.unet.dtype) == (torch.bfloat16, torch.float32)


def latents_by_hand(pipeline, images):
    x = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])
    with torch.no_grad():
        return pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor


@torch.no_grad()
def denoise_by_hand(pipeline, z, times, w, seed=0):
    """Algorithm 3 with γ, step by step; one more network call a step where w is not 0."""
    stream, alphas = pipeline.query_stream, pipeline.query_scheduler.alphas_cumprod
    length = stream.config.d_e**0.5 if stream.config.query_scale == "sqrt_d" else 1
    e_t = first_noise([seed], stream.config.d_e).expand(len(z), -1)
    seen, unseen = (stream.read_image(pipeline.unet, each) for each in (z, torch.zeros_like(z)))
    for t, t_next in zip(times, [*times[1:], None], strict=True):
        steps = torch.full((len(z),), t)
        e_0_hat = stream(pipeline.unet, seen, e_t, steps)
        if w:
            e_0_hat = (1 + w) * e_0_hat - w * stream(pipeline.unet, unseen, e_t, steps)
        clean = stream.config.gamma * length * e_0_hat
        eps_hat = (e_t - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()
        alpha_next = alphas[t_next] if t_next is not None else torch.tensor(1.0)
        e_t = alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * eps_hat
    return F.normalize(e_t, dim=-1)


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize(("guidance_scale", "w"), [(4.0, 3.0), (1.0, 0.0)])
@pytest.mark.parametrize("query_scale", ["unit", "sqrt_d"])
def test_encode_image_is_algorithm_3_by_hand(encoder_folder, fusion, guidance_scale, w, query_scale):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion, gamma=0.5, query_scale=query_scale)
    images = toy_images()
    expected = denoise_by_hand(pipeline, latents_by_hand(pipeline, images), [999, 749, 499, 249], w, seed=5)
    found = pipeline.encode_image(images, num_inference_steps=4, guidance_scale=guidance_scale, seed=5)
    assert (found - expected).abs().max() <= 1e-5  # float32 through four steps
    assert found.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_naming_is_unguided_unless_asked(pipeline):
    images = toy_images()
    assert torch.equal(pipeline.encode_image(images), pipeline.encode_image(images, guidance_scale=1))


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_guidance_steers_away_from_zero_latents_of_the_images_size(encoder_folder, fusion):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion)
    z = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    expected = denoise_by_hand(pipeline, z, [999, 499], w=3)
    assert (pipeline.encode_image(z, 2, guidance_scale=4) - expected).abs().max() <= 1e-5  # float32, two steps
    reading = pipeline.query_stream.read_image(pipeline.unet, z)
    assert (pipeline.encode_image(reading, 2, guidance_scale=4) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_neither_batch_nor_order_changes_an_embedding(encoder_folder, fusion):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion)
    images = toy_images(5)
    together = pipeline.encode_image(images, 3)
    order = [3, 1, 4, 0, 2]
    for found in (
        pipeline.encode_image(images, 3, batch_size=1),
        pipeline.encode_image(images, 3, batch_size=2),
        pipeline.encode_image([images[i] for i in order], 3)[np.argsort(order)],
    ):
        assert (found - together).abs().max() <= 1e-5  # products of another size may sum in another order
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_several_samples_are_the_mean_of_the_answers_of_their_seeds(encoder_folder, fusion):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion)
    images, alone = toy_images(), []
    for seed in (5, 6, 7):
        alone.append(pipeline.encode_image(images, 2, 4.0, seed))
    total = alone[0] + alone[1] + alone[2]
    together = pipeline.encode_image(images, 2, 4.0, 5, num_samples=3)
    assert (together - total / total.norm(dim=-1, keepdim=True)).abs().max() <= 1e-6  # one rounding of a float32
    one_by_one = [pipeline.encode_image(image, 2, 4.0, 5, num_samples=3) for image in images]
    assert (torch.cat(one_by_one) - together).abs().max() <= 1e-5  # sums in another order
    assert torch.equal(pipeline.encode_image(images, 2, 4.0, 5, num_samples=1), alone[0])


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize(("text_chain", "changes"), [("diffusion", True), ("none", False)])
def test_a_seed_matters_where_there_is_noise(encoder_folder, fusion, text_chain, changes):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion, text_chain=text_chain)
    images = toy_images()
    first, second, again = (pipeline.encode_image(images, 2, seed=seed) for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert (not torch.equal(first, second)) == changes
    assert not changes or (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regression_answers_in_one_pass_in_any_type(encoder_folder, fusion, dtype):
    pipeline = toy_pipeline(encoder_folder, fusion=fusion, text_chain="none")
    for part in PARTS:
        getattr(pipeline, part).to(dtype)
    images, stream = toy_images(), pipeline.query_stream
    z = pipeline.encode_latents(images)
    with torch.no_grad():
        readings = [stream.read_image(pipeline.unet, each) for each in (z, torch.zeros_like(z))]
        seen, unseen = (stream(pipeline.unet, reading, None, None) for reading in readings)
    expected = F.normalize(4 * seen - 3 * unseen, dim=-1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # bf16 has 8 bits, and guidance quadruples their error
    assert (pipeline.encode_image(images, guidance_scale=4) - expected).abs().max() <= tolerance
    assert (pipeline.encode_image(images, guidance_scale=1) - seen).abs().max() <= tolerance


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
def test_a_label_is_the_mean_over_its_templates(encoder_folder, encoder):
    pipeline = toy_pipeline(encoder_folder, encoder)
    labels, templates = ["red", "apple"], ["{}", "a {}", "a {} or {}"]
    for row, label in zip(pipeline.encode_labels(labels, templates), labels, strict=True):
        captions = [label, f"a {label}", f"a {label} or {label}"]
        mean = sum(pipeline.encode_text([caption])[0] for caption in captions) / 3
        assert (row - mean / mean.norm()).abs().max() <= 1e-5  # encoded one by one: sums in another order


def test_encode_text_ignores_how_many_captions_are_encoded_at_once(pipeline, monkeypatch):
    captions = ["red", "a red apple", "", "b", "c"]
    together = pipeline.encode_text(captions)
    monkeypatch.setattr("palindiff.inference.pipeline.CAPTIONS_AT_ONCE", 2)
    assert (pipeline.encode_text(captions) - together).abs().max() <= 1e-5  # sums in another order


def test_classify_is_the_softmax_of_kappa_times_the_cosine(pipeline):
    images, labels = toy_images(), ["red", "apple", "b"]
    found = pipeline.classify(images, labels, ["a {}"], num_inference_steps=2, seed=3)
    cosines = pipeline.encode_image(images, 2, seed=3) @ pipeline.encode_labels(labels, ["a {}"]).T
    exponentials = np.exp(pipeline.query_stream.log_logit_scale.exp().item() * cosines.double().numpy())
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.abs(found.numpy() - expected).max() <= 1e-5  # float32 against float64
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert not found.requires_grad


def test_rank_is_the_cosine_of_every_pair(pipeline):
    images, captions = toy_images(), ["red", "a red apple"]
    found = pipeline.rank(images, captions, guidance_scale=1.0, batch_size=2)
    e_0_hat, e = pipeline.encode_image(images, guidance_scale=1.0, batch_size=2), pipeline.encode_text(captions)
    for i in range(3):
        for j in range(2):
            assert found[i, j].item() == pytest.approx(F.cosine_similarity(e_0_hat[i], e[j], dim=0).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "templates", "sentence"),
    [
        ([], ["{}"], "No label was given"),
        (["cat", " "], ["{}"], "A label is empty"),
        (["cat", "dog", "cat "], ["{}"], "The label 'cat' is repeated"),
        ("cat", ["{}"], "`labels` is one string, 'cat'"),
        (["cat", 3], ["{}"], "A label is a `int`"),
        (["cat"], ["{}", None], "A template is a `NoneType`"),
        (["cat"], [], "No template was given"),
        (["cat"], ["a {}", "a photo"], r"The template 'a photo' has no `\{\}`"),
        (["cat"], "a {}", r"`templates` is one string, 'a \{\}'"),
    ],
)
def test_labels_and_templates_that_cannot_be_used_are_refused(pipeline, labels, templates, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}. Expected .* (Pass|Use) "):
        pipeline.classify(toy_images(1), labels, templates)
