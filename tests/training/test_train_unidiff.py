"""The trainer of UniDiff: stock folders, LoRA that stock libraries load, exact resume, early stopping, bad input."""

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import CLIPModel

from palindiff.inference.clip_model import ClipModel
from palindiff.seeds import seeded_generator
from palindiff.training.base_trainer import open_sets
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.order import rows_of_step
from palindiff.training.loop.run_log import RunLog, read_log
from palindiff.training.train_unidiff import UniDiffTrainer
from palindiff.training.trainer import make_trainer
from toys.run import one_thread
from toys.text_encoders import write_clip
from toys.unidiff import train_unidiff, unidiff_recipe

IDS = torch.tensor([[0, 5, 6, 1], [0, 7, 1, 1]])


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(toy_parts, stable_diffusion, tmp_path_factory):
    """A whole run of all weights."""
    output = tmp_path_factory.mktemp("unidiff") / "run"
    with one_thread():
        train_unidiff(unidiff_recipe(toy_parts, stable_diffusion), output)
    return output


@pytest.fixture(scope="module")
def with_lora(toy_parts, stable_diffusion, tmp_path_factory):
    """A whole run of LoRA."""
    output = tmp_path_factory.mktemp("unidiff") / "lora"
    recipe = unidiff_recipe(
        toy_parts, stable_diffusion, trained="lora", lora={"rank": 2, "alpha": 4.0}, optimizer={"learning_rate": 0.05}
    )
    with one_thread():
        train_unidiff(recipe, output)
    return output


def weights(folder):
    return {
        f"{path.parent.relative_to(folder)}.{name}": weight
        for path in sorted(folder.rglob("*.safetensors")) for name, weight in load_file(path).items()
    }  # fmt: skip


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def changed(folder, start):
    before = weights(start)
    return {name for name, weight in weights(folder).items() if not torch.equal(weight, before[name])}


def test_both_results_are_stock_folders_with_one_text_encoder(finished):
    result = finished / "unidiff"
    clip = CLIPModel.from_pretrained(result / "clip").eval()
    pipeline = StableDiffusionPipeline.from_pretrained(result / "stable_diffusion", safety_checker=None)
    with torch.no_grad():
        of_clip = clip.text_model(IDS).last_hidden_state
        of_pipeline = pipeline.text_encoder(IDS).last_hidden_state
    assert torch.equal(of_clip, of_pipeline)
    assert pipeline("a red a", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_all_weights_change_but_those_of_the_vae(finished, stable_diffusion):
    names = changed(finished / "unidiff" / "stable_diffusion", stable_diffusion / "sd1")
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}
    images = changed(finished / "unidiff" / "clip", stable_diffusion / "clip_1")
    assert any("vision_model" in name for name in images)
    assert any(name.endswith("text_projection.weight") for name in images)


def test_all_three_losses_and_recall_are_logged(finished):
    log = read_log(finished / "log.jsonl")
    assert {"loss", "contrastive", "generation", "consistency"} <= log[0].keys()
    assert {"image_to_text_recall_1", "validation_generation", "validation_consistency"} <= log[-1].keys()
    assert (finished / "best" / "clip").is_dir()


def test_attention_alone_is_trained_of_the_unet(toy_parts, stable_diffusion, tmp_path):
    train_unidiff(unidiff_recipe(toy_parts, stable_diffusion, trained="attention"), tmp_path)
    names = changed(tmp_path / "unidiff" / "stable_diffusion", stable_diffusion / "sd1")
    of_unet = {name for name in names if name.startswith("unet.")}
    assert of_unet
    assert all(".attn1." in name or ".attn2." in name for name in of_unet)


@pytest.mark.filterwarnings("ignore:This CPU has no instructions for bf16")
def test_training_in_bf16_learns_in_float32_weights(toy_parts, stable_diffusion, tmp_path):
    recipe = unidiff_recipe(toy_parts, stable_diffusion, machine={"precision": "bf16"}, loop={"grad_cache_size": 2})
    train_unidiff(recipe, tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    result = weights(tmp_path / "unidiff")
    assert {weight.dtype for weight in result.values() if weight.is_floating_point()} == {torch.float32}
    assert changed(tmp_path / "unidiff" / "clip", stable_diffusion / "clip_1")


def test_a_stopped_run_ends_with_the_weights_of_an_unstopped_one(
    finished, toy_parts, stable_diffusion, tmp_path, monkeypatch
):
    log_step = RunLog.step

    def interrupt_at_3(run_log, step, numbers):
        log_step(run_log, step, numbers)
        if step == 3:
            raise KeyboardInterrupt

    recipe = unidiff_recipe(toy_parts, stable_diffusion)
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", interrupt_at_3)
        with pytest.raises(KeyboardInterrupt):
            train_unidiff(recipe, tmp_path)
    train_unidiff(recipe, tmp_path)
    assert same(weights(tmp_path / "unidiff"), weights(finished / "unidiff"))


def test_a_lora_that_diffusers_loads_generates_as_the_merged_weights(with_lora, stable_diffusion):
    result = with_lora / "unidiff"
    merged = StableDiffusionPipeline.from_pretrained(result / "stable_diffusion", safety_checker=None)
    stock = StableDiffusionPipeline.from_pretrained(stable_diffusion / "sd1", safety_checker=None)

    def image(pipeline):
        generator = torch.Generator().manual_seed(1)
        return pipeline("a red a", num_inference_steps=2, output_type="pt", generator=generator).images

    before = image(stock)
    stock.load_lora_weights(result / "stable_diffusion_lora")
    torch.testing.assert_close(image(stock), image(merged), atol=1e-5, rtol=0)
    assert not torch.allclose(before, image(merged), atol=1e-4)
    assert not any("lora" in name for name in weights(result / "stable_diffusion"))


def test_a_lora_that_transformers_loads_embeds_as_the_merged_weights(with_lora, stable_diffusion):
    result = with_lora / "unidiff"
    merged, stock = (CLIPModel.from_pretrained(path) for path in (result / "clip", stable_diffusion / "clip_1"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def embeddings(clip):
        found = clip.eval()(input_ids=IDS, pixel_values=pixels)
        return found.image_embeds, found.text_embeds

    before = embeddings(stock)
    stock.load_adapter(str(result / "clip_lora"))
    for found, expected, start in zip(embeddings(stock), embeddings(merged), before, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, start, atol=1e-4)


def test_a_gradient_cache_trains_the_same_weights(finished, toy_parts, stable_diffusion, tmp_path):
    train_unidiff(unidiff_recipe(toy_parts, stable_diffusion, loop={"grad_cache_size": 1}), tmp_path)
    found, expected = weights(tmp_path / "unidiff"), weights(finished / "unidiff")
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=2e-3, rtol=0)  # Adam's first steps: sign of gradients


def test_training_stops_after_evaluations_without_a_better_one(toy_parts, stable_diffusion, tmp_path):
    recipe = unidiff_recipe(
        toy_parts, stable_diffusion, evaluation={"patience": 2}, loop={"num_steps": 40, "evaluate_every": 1},
        optimizer={"learning_rate": 1e-12, "new_learning_rate": 1e-12},  # nothing is learned: the start stays the best
    )  # fmt: skip
    train_unidiff(recipe, tmp_path)
    steps = [line["step"] for line in read_log(tmp_path / "log.jsonl") if "validation_loss" in line]
    assert steps == [0, 1, 2]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 0
    train_unidiff(recipe, tmp_path)  # it stays finished
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl") if "validation_loss" in line] == steps


def test_the_result_of_a_run_that_may_stop_early_is_its_best_evaluation(toy_parts, stable_diffusion, tmp_path):
    recipe = unidiff_recipe(
        toy_parts, stable_diffusion, evaluation={"patience": 3, "keep_best": "generation"},
        loop={"num_steps": 4, "evaluate_every": 1}, optimizer={"learning_rate": 0.1},
    )  # fmt: skip
    train_unidiff(recipe, tmp_path)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["step"] < 4, "such a rate makes the model worse"
    assert best["metric"] == "validation_generation"
    result, kept = weights(tmp_path / "unidiff"), weights(tmp_path / "best")
    assert all(torch.equal(weight, kept[name]) for name, weight in result.items())
    last = load_file(saved_states(tmp_path / "state")[-1] / "ema.safetensors")
    assert not torch.equal(last["unet.conv_in.weight"], result["stable_diffusion/unet.conv_in.weight"])


@pytest.mark.parametrize(
    ("evaluation", "weight", "expected"),
    [
        ({}, 1.0, "recall"),
        ({"evaluators": ["classification"]}, 1.0, "classification"),
        ({"evaluators": []}, 1.0, "generation"),
        ({}, 0.0, "generation"),
        ({"keep_best": "none"}, 1.0, None),
    ],
)
def test_what_the_best_evaluation_is_chosen_by(evaluation, weight, expected, toy_parts, stable_diffusion):
    objective = {"contrastive_weight": weight}
    recipe = unidiff_recipe(toy_parts, stable_diffusion, evaluation=evaluation, objective=objective)
    assert recipe.best_by == expected


@pytest.mark.parametrize("evaluation", [{"keep_best": "recall", "evaluators": []}, {"keep_best": "none"}])
def test_early_stopping_needs_something_to_compare(evaluation, toy_parts, stable_diffusion):
    with pytest.raises(ValidationError, match=r"`evaluation.patience` is 2, and .* finds nothing to compare"):
        unidiff_recipe(toy_parts, stable_diffusion, evaluation={"patience": 2} | evaluation)


def test_the_unet_is_no_score_where_it_is_not_trained(toy_parts, stable_diffusion):
    with pytest.raises(ValidationError, match="so the U-Net is not trained"):
        unidiff_recipe(
            toy_parts, stable_diffusion, evaluation={"keep_best": "generation"},
            objective={"generation_weight": 0, "consistency_weight": 0},
        )  # fmt: skip


def test_a_run_that_may_stop_early_ends_at_once_where_nothing_can_be_compared(toy_parts, stable_diffusion, tmp_path):
    recipe = unidiff_recipe(toy_parts, stable_diffusion, evaluation={"patience": 2})
    trainer = make_trainer(recipe, tmp_path).prepare()
    trainer.evaluation_rows = lambda step: []
    with pytest.raises(ValueError, match="The evaluation of step 0 found no score"):
        trainer.evaluate(0)


def test_what_a_killed_run_found_best_is_no_bar_for_one_that_begins_anew(toy_parts, stable_diffusion, tmp_path):
    """It may have had other models or images, and nothing was saved that tells."""
    recipe = unidiff_recipe(
        toy_parts, stable_diffusion, evaluation={"patience": 2}, loop={"num_steps": 1, "evaluate_every": 1}
    )
    tmp_path.joinpath("best").mkdir()
    tmp_path.joinpath("best", "of another run").touch()
    tmp_path.joinpath("best.json").write_text('{"step": 0, "metric": "mean_recall", "value": 2.0}')
    train_unidiff(recipe, tmp_path)
    assert json.loads((tmp_path / "best.json").read_text())["value"] <= 1
    assert sorted(path.name for path in (tmp_path / "unidiff").iterdir()) == ["clip", "stable_diffusion"]


def test_a_result_that_a_prolonged_run_did_not_come_to_write_is_written_later(
    toy_parts, stable_diffusion, tmp_path, monkeypatch
):
    def recipe(num_steps):
        return unidiff_recipe(toy_parts, stable_diffusion, loop={"num_steps": num_steps})

    train_unidiff(recipe(2), tmp_path)
    short = weights(tmp_path / "unidiff")
    with monkeypatch.context() as patched:
        patched.setattr(UniDiffTrainer, "_write_result", lambda self, result: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_unidiff(recipe(4), tmp_path)
    train_unidiff(recipe(4), tmp_path)
    assert any(not torch.equal(weight, short[name]) for name, weight in weights(tmp_path / "unidiff").items())


def test_a_smaller_part_of_the_data_is_validated_on_the_same_images(toy_parts, stable_diffusion):
    def sets(**data):
        return open_sets(unidiff_recipe(toy_parts, stable_diffusion, data={"path": str(toy_parts / "images"), **data}))

    for data in ({}, {"validation_fraction": 0.3}):
        (every, validation), (few, same) = sets(**data), sets(num_images=4, **data)
        assert len(few) == 4 < len(every)
        assert same.fingerprint == validation.fingerprint
        assert {row.source.place for row in few} < {row.source.place for row in every}


def test_contrastive_alone_is_plain_fine_tuning_of_clip_step_for_step(toy_parts, stable_diffusion, tmp_path):
    """λ_IS = λ_RSC = 0 against a loop of a few lines: the same batches, CLIP's loss, AdamW at the same rates."""
    off = {"generation_weight": 0.0, "consistency_weight": 0.0}
    recipe = unidiff_recipe(toy_parts, stable_diffusion, objective=off, loop={"ema_decay": 0.0})
    train_unidiff(recipe, tmp_path / "unidiff")
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer(recipe, tmp_path / "plain").prepare()
    plain = trainer.objective.contrastive.train()
    groups = plain.parameter_groups(1e-3, 1e-3)
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-4, fused=True)
    for step in range(4):
        uniform = torch.rand(4, 2, generator=seeded_generator(0, "draws", step))
        batch = trainer.training_set.read(rows_of_step(step, 4, len(trainer.training_set), 0), uniform)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 2)
        adam.zero_grad()
        plain(batch, {})["loss"].backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adam.step()
    (tmp_path / "clip").mkdir()
    trainer.clip.save_pretrained(tmp_path / "clip")
    found, expected = weights(tmp_path / "unidiff" / "unidiff" / "clip"), weights(tmp_path / "clip")
    assert found.keys() == expected.keys()
    for name, weight in found.items():  # the norm of all gradients is summed in another order
        torch.testing.assert_close(weight, expected[name], atol=1e-9, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"clip": {"source": "narrow"}}, r"makes features of width 16, and the U-Net of `.*sd1` takes width 32"),
        (
            {"trained": "lora", "lora": {"unet_layers": ["to_w"]}},
            r"LoRA was asked for on the layer `to_w` of the U-Net, which has none of that name\. Expected some of",
        ),
        ({"objective": {"feature_layer": "middle"}}, r"`objective.feature_layer` is 'middle'"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(sections, sentence, toy_parts, stable_diffusion, tmp_path):
    if "clip" in sections:
        sections = {"clip": {"source": str(write_clip(tmp_path / "narrow", hidden_size=16))}}
    recipe = unidiff_recipe(toy_parts, stable_diffusion, **sections)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        train_unidiff(recipe, tmp_path)


def test_losses_of_no_weight_at_all_are_refused(toy_parts, stable_diffusion):
    off = {"contrastive_weight": 0.0, "generation_weight": 0.0, "consistency_weight": 0.0}
    with pytest.raises(ValueError, match="All three weights"):
        unidiff_recipe(toy_parts, stable_diffusion, objective=off)


def test_the_result_is_a_clip_for_evaluate(finished):
    model = ClipModel.from_pretrained(finished / "unidiff" / "clip")
    assert model.encode_text(["a red a"]).shape[0] == 1
