"""train_diffdis.py: a whole toy recipe, from images to a Stable Diffusion folder, stopped, killed and resumed."""

import multiprocessing
import shutil
import signal
import time
import warnings

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from palindiff.cli.main import main
from palindiff.data.images import ImageFileError
from palindiff.data.sources import open_images
from palindiff.evaluation.evaluators import EvaluationConfig
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.unet_encoder import unet_encoder_parameters
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import read_log
from palindiff.training.recipes.build_models import SchedulerConfig, UNetConfig, build_models
from palindiff.training.recipes.yaml_files import RECIPE_FILE
from palindiff.training.trainer import describe
from toys.recipe import SIDE_PX, prepare_toy, recipe_tree, toy_recipe, toy_vae, train_toy_recipe, weights_of
from toys.run import one_thread
from toys.text_encoders import write_clip

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def trained(toy_parts, tmp_path_factory):
    """A recipe, the folder of its run, and the pipeline that training returned."""
    recipe, output = toy_recipe(toy_parts), tmp_path_factory.mktemp("trained") / "run"
    with one_thread():
        return recipe, output, train_toy_recipe(recipe, output)


def at_the_start(recipe):
    """The models of a recipe before training, the same at every call."""
    return build_models(recipe, recipe.loop.seed)


def changed(before, after):
    """Names of weights that differ."""
    assert before.keys() == after.keys()
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def generate_images(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        ["a red a", ""], num_inference_steps=3, guidance_scale=4, generator=generator, output_type="np"
    ).images


def written_weights(output):
    """The bytes of both trained parts of a checkpoint."""
    return {part: (output / "checkpoint" / part / WEIGHTS).read_bytes() for part in ("unet", "query_stream")}


def test_training_writes_a_folder_that_generates_the_same_in_stock_diffusers(trained):
    recipe, output, pipeline = trained
    stock = StableDiffusionPipeline.from_pretrained(output / "checkpoint")
    loaded = PalindiffPipeline.from_pretrained(output / "checkpoint")
    generated = generate_images(stock)
    assert generated.shape == (2, SIDE_PX, SIDE_PX, 3)
    assert (generated == generate_images(loaded)).all()
    assert (generated == generate_images(pipeline)).all()
    assert (generated != generate_images(at_the_start(recipe))).any()


def test_a_written_folder_names_as_the_trained_pipeline_does(trained, toy_parts):
    _, output, pipeline = trained
    loaded = PalindiffPipeline.from_pretrained(output / "checkpoint")
    images = sorted((toy_parts / "images" / "validation").glob("*.png"))
    scores = [each.rank(images, ["a red g", "a green h"], num_inference_steps=2) for each in (pipeline, loaded)]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-6)  # float32; weights lie elsewhere in memory
    assert not changed(weights_of(pipeline), weights_of(loaded))
    assert not any(part.training for part in (pipeline.unet, pipeline.query_stream, pipeline.vae))


def test_a_checkpoint_holds_the_average_of_the_weights(trained):
    _, output, pipeline = trained
    average = load_file(saved_states(output / "state")[-1] / "ema.safetensors")
    weights = load_file(saved_states(output / "state")[-1] / "weights.safetensors")
    assert not changed(average, weights_of(pipeline))
    assert changed(average, weights)


def test_both_tasks_train_both_parts_and_nothing_frozen(trained):
    recipe, _, pipeline = trained
    start = at_the_start(recipe)
    moved = changed(weights_of(start), weights_of(pipeline))
    assert len(moved) > 0.9 * len(weights_of(start))  # both normed by layers whose own biases need not move at once
    for part in ("vae", "text_encoder"):
        before, after = (getattr(each, part).state_dict() for each in (start, pipeline))
        assert not changed(before, after)


@pytest.mark.parametrize("task", ["generation", "alignment"])
def test_one_task_leaves_the_other_part_s_weights_to_the_bit(task, toy_parts, tmp_path):
    """With weight decay and averaging on, which would move whatever the optimizer holds."""
    recipe = toy_recipe(toy_parts, objective={"task": task}, optimizer={"weight_decay": 0.1})
    start = at_the_start(recipe)
    encoder = {id(weight) for weight in unet_encoder_parameters(start.unet)}
    encoder_names = {f"unet.{name}" for name, weight in start.unet.named_parameters() if id(weight) in encoder}
    before = weights_of(start)
    stream = {name for name in before if name.startswith("query_stream.")}
    moved = changed(before, weights_of(train_toy_recipe(recipe, tmp_path)))
    used = before.keys() - stream if task == "generation" else encoder_names | stream
    assert moved <= used
    assert len(moved) > 0.9 * len(used)
    assert len(used) < len(before)


def test_each_part_learns_at_its_own_rate(toy_parts, tmp_path):
    """Adam's first step moves a weight by its rate, whatever the gradient; averaging has not begun after one step."""
    recipe = toy_recipe(
        toy_parts,
        loop={"num_steps": 1},
        optimizer={"learning_rate": 1e-3, "new_learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0},
    )
    before, after = weights_of(at_the_start(recipe)), weights_of(train_toy_recipe(recipe, tmp_path))
    for part, rate in (("unet.", 1e-3), ("query_stream.", 1e-2)):
        steps = torch.cat([(after[name] - before[name]).abs().flatten() for name in before if name.startswith(part)])
        assert steps.max().item() == pytest.approx(rate, rel=1e-3)
        assert steps.median().item() == pytest.approx(rate, rel=1e-2)


def test_a_run_reads_captions_images_and_steps_by_its_seed(trained, toy_parts, tmp_path):
    recipe, output, _ = trained
    train_toy_recipe(recipe, tmp_path / "again")
    assert written_weights(tmp_path / "again") == written_weights(output)
    train_toy_recipe(toy_recipe(toy_parts, loop={"seed": 1}), tmp_path / "other")
    assert written_weights(tmp_path / "other") != written_weights(output)


def test_features_are_those_of_the_recipe_s_images_and_captions(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts), tmp_path)
    assert (len(parts.training_set), len(parts.validation_set)) == (12, 6)
    row = torch.tensor([5])  # three captions
    batch = parts.training_set.read(row, torch.tensor([[0.9, 0.4]]))
    image = toy_parts / "images" / "train" / "5.png"
    z = parts.pipeline.encode_latents([image])
    torch.testing.assert_close(batch["z_mean"].float(), z, rtol=1e-3, atol=1e-3)  # kept as float16
    torch.testing.assert_close(batch["e_0"], parts.pipeline.encode_text(["a red a"]), rtol=0, atol=1e-6)
    c_empty = parts.pipeline.encode_prompt([""], "cpu", 1, False)[0]
    torch.testing.assert_close(parts.objective.c_empty, c_empty, rtol=1e-3, atol=1e-3)  # kept as float16


def test_an_image_that_cannot_be_read_is_left_out_with_its_captions(toy_parts, tmp_path):
    root = tmp_path / "parts"
    shutil.copytree(toy_parts, root)
    for split, gone in (("train", 4), ("validation", 2)):
        path = root / "images" / split / f"{gone}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageFileError, match=r"4\.png.*`data\.on_bad: skip`"):
        prepare_toy(toy_recipe(root), tmp_path)
    told = []
    recipe = toy_recipe(root, data={"on_bad": "skip"})
    parts = prepare_toy(recipe, tmp_path, lambda *progress: told.append(progress))
    assert [what for what, *_ in told if "left out" in what] == [
        f"1 of {number} rows of `{root}/images/{split}` were left out: damaged image (1). Used"
        for split, number in (("train", 12), ("validation", 6))
    ]
    whole = prepare_toy(toy_recipe(toy_parts), tmp_path)
    kept, first = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]), torch.zeros(11, 2) + 0.9 * torch.eye(2)[0]
    batch, expected = parts.training_set.read(torch.arange(11), first), whole.training_set.read(kept, first)
    assert torch.equal(batch["caption_id"], expected["caption_id"])
    torch.testing.assert_close(batch["z_mean"], expected["z_mean"], rtol=1e-2, atol=2e-3)  # float16, another batch
    captions = [row.captions for row in whole.validation_images]
    assert [row.captions for row in parts.validation_images] == [captions[row] for row in (0, 1, 3, 4, 5)]
    assert len(parts.validation_set) == 5
    assert parts.fingerprints["training set"] != whole.fingerprints["training set"]


def run_command(arguments, monkeypatch):
    """Run the command in this process -> exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("sys.argv", ["palindiff", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


def test_a_killed_command_resumes_to_the_weights_of_an_unkilled_run(toy_parts, tmp_path, monkeypatch):
    """SIGKILL from outside, the same command again."""
    sections = {"loop": {"num_steps": 24, "save_every": 3}, "machine": {"num_threads": 1}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe_tree(toy_parts, **sections)))
    arguments = ["train", "--recipe", str(tmp_path / "toy.yaml"), "--output", str(tmp_path / "killed")]
    log = tmp_path / "killed" / "log.jsonl"
    child = multiprocessing.get_context("fork").Process(target=run_command, args=(arguments, monkeypatch))
    child.start()
    while child.is_alive() and max((line["step"] for line in read_log(log)), default=0) < 4:
        time.sleep(0.002)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert 4 <= max(line["step"] for line in read_log(log)) < 24
    assert saved_states(tmp_path / "killed" / "state")
    assert not (tmp_path / "killed" / "checkpoint").exists()
    assert run_command(arguments, monkeypatch) == 0
    train_toy_recipe(toy_recipe(toy_parts, **sections), tmp_path / "whole")
    assert written_weights(tmp_path / "killed") == written_weights(tmp_path / "whole")
    assert [line["step"] for line in read_log(log) if "loss" in line] == list(range(1, 25))
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        "best", "best.json", "calibration.json", "checkpoint", "latest", "log.jsonl", RECIPE_FILE, "result.json",
        "state", "tensorboard",
    }  # fmt: skip


def test_a_dry_run_prints_what_describe_counts(toy_parts, tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe_tree(toy_parts)))
    assert run_command(["train", "--recipe", str(tmp_path / "toy.yaml"), "--dry-run"], monkeypatch) == 0
    printed = capsys.readouterr().out.splitlines()
    counts = describe(toy_recipe(toy_parts))
    assert counts.pop("training_bytes") > 0
    for name, count in counts.items():
        assert f"{name}: {count:,}" in printed


def test_a_clip_s_projection_is_saved_with_the_stream(toy_parts, tmp_path):
    source = write_clip(tmp_path / "clip")
    recipe = toy_recipe(toy_parts, text={"source": str(source)}, loop={"num_steps": 1})
    pipeline = train_toy_recipe(recipe, tmp_path / "run")
    stream = load_file(tmp_path / "run" / "checkpoint" / "query_stream" / WEIGHTS)
    assert torch.equal(stream["clip_projection.weight"], load_text_encoder(str(source)).projection.weight)
    assert pipeline.query_stream.config.pooling == "clip"


@pytest.mark.parametrize(("widths", "head_dim", "norm_groups"), [((96,), 40, 32), ((32, 8), 16, 8), ((96,), 32, 20)])
def test_widths_that_heads_or_norms_do_not_divide_are_refused(widths, head_dim, norm_groups):
    """A U-Net would be built with other heads than asked for, or fail somewhere in its depths."""
    with pytest.raises(ValidationError, match=rf"`widths` holds {widths[-1]}\. Expected multiples of `head_dim`"):
        UNetConfig(widths=widths, head_dim=head_dim, norm_groups=norm_groups)


def test_gradient_checkpointing_is_a_choice_of_the_machine_and_changes_no_number(toy_parts, tmp_path):
    runs = {}
    for is_on in (False, True):
        recipe = toy_recipe(toy_parts, machine={"gradient_checkpointing": is_on})
        pipeline = train_toy_recipe(recipe, tmp_path / str(is_on))
        assert pipeline.unet.is_gradient_checkpointing == is_on
        runs[is_on] = [line["loss"] for line in read_log(tmp_path / str(is_on) / "log.jsonl") if "loss" in line][-1]
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)


def test_a_schedule_that_ends_in_pure_noise_trains_and_generates(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, scheduler={"rescale_betas_zero_snr": True}, views={"flip": "naming", "crops": 2})
    pipeline = train_toy_recipe(recipe, tmp_path)
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    assert pipeline.query_scheduler.alphas_cumprod[-1] > 0
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "checkpoint", safety_checker=None)
    generated = generate_images(stock)
    assert torch.isfinite(torch.from_numpy(generated)).all()
    assert (generated == generate_images(pipeline)).all()


def test_a_longer_run_of_the_same_folder_replaces_the_checkpoint(toy_parts, tmp_path):
    train_toy_recipe(toy_recipe(toy_parts), tmp_path)
    before = written_weights(tmp_path)
    train_toy_recipe(toy_recipe(toy_parts), tmp_path)
    assert written_weights(tmp_path) == before
    longer = train_toy_recipe(toy_recipe(toy_parts, loop={"num_steps": 3}), tmp_path)
    assert not changed(load_file(tmp_path / "checkpoint" / "unet" / WEIGHTS), longer.unet.state_dict())
    assert all(before[part] != now for part, now in written_weights(tmp_path).items())


@pytest.mark.parametrize("replaced", ["VAE", "training set"])
def test_a_run_does_not_resume_with_other_data_or_frozen_models(replaced, toy_parts, tmp_path):
    root = tmp_path / "parts"
    shutil.copytree(toy_parts, root)
    train_toy_recipe(toy_recipe(root), tmp_path / "run")
    if replaced == "VAE":
        toy_vae(seed=9).save_pretrained(root / "vae")
    else:
        Image.new("RGB", (SIDE_PX, SIDE_PX), "red").save(root / "images" / "train" / "3.png")
    with pytest.raises(ValueError, match=f"trained with another {replaced} than is found now.*Put it back"):
        train_toy_recipe(toy_recipe(root, loop={"num_steps": 3}), tmp_path / "run")


def test_a_recipe_s_views_reach_training_alone(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, views={"flip": "none", "crops": 2}), tmp_path)
    assert parts.training_set.flip == "none"
    assert parts.training_set.images.moments.shape[1] == 3
    assert parts.validation_set.images.moments.shape[1] == 1


def test_noise_cannot_be_predicted_from_pure_noise():
    with pytest.raises(ValidationError, match=r"`rescale_betas_zero_snr` is true.*Expected 'v_prediction'"):
        SchedulerConfig(prediction_type="epsilon", rescale_betas_zero_snr=True)


def test_what_would_fail_at_the_first_evaluation_is_refused_before_the_run_begins():
    with pytest.raises(ValidationError, match=r"he template 'an emoji' has no `\{\}`"):
        EvaluationConfig(templates=("an emoji",))
    for name in ("naming_steps", "num_inference_steps"):
        with pytest.raises(ValidationError, match="less than or equal to 1000"):
            EvaluationConfig(**{name: 1001})


@pytest.mark.parametrize(
    ("loop", "task", "told"),
    [
        ({"batch_size": 8}, "both", "A micro-batch has 8 rows, so a caption has at most 7 negatives"),
        ({"batch_size": 16, "accumulation": 4}, "alignment", "has 4 rows, so a caption has at most 3 negatives"),
        ({"batch_size": 16}, "both", None),
        ({"batch_size": 8}, "generation", None),
    ],
)
def test_few_negatives_are_warned_of_once(loop, task, told, toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, loop={"num_steps": 1, **loop}, objective={"task": task})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_toy(recipe, tmp_path)
    found = [str(each.message) for each in caught if "micro-batch" in str(each.message)]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def without_validation(toy_parts, folder):
    """The toy data without its validation split."""
    shutil.copytree(toy_parts / "images" / "train", folder / "train")
    return str(folder)


def test_a_part_of_the_training_images_is_held_out_for_validation(toy_parts, tmp_path):
    path = without_validation(toy_parts, tmp_path / "images")
    parts = prepare_toy(toy_recipe(toy_parts, data={"path": path, "validation_fraction": 0.3}), tmp_path / "run")
    sides = open_images(parts.recipe.data).held_out(0.3)
    assert (len(parts.training_set), len(parts.validation_set)) == tuple(map(len, sides))
    assert parts.fingerprints["training set"] == sides[0].fingerprint
    assert [row.captions for row in parts.validation_images] == [row.captions for row in sides[1]]
    assert "validation_loss" in parts.validation_losses()


def test_a_run_without_validation_trains(toy_parts, tmp_path):
    path = without_validation(toy_parts, tmp_path / "images")
    with pytest.raises(ValueError, match=r"`data\.validation_fraction: 0\.05`; to train without validation"):
        prepare_toy(toy_recipe(toy_parts, data={"path": path}), tmp_path / "run")
    recipe = toy_recipe(toy_parts, data={"path": path}, evaluation={"validation_split": None})
    train_toy_recipe(recipe, tmp_path / "run")
    assert not [line for line in read_log(tmp_path / "run" / "log.jsonl") if any("recall" in key for key in line)]
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_encoded(toy_parts, tmp_path):
    (tmp_path / "file").touch()
    recipe = toy_recipe(toy_parts, machine={"cache_dir": str(tmp_path / "file" / "cache")})
    with pytest.raises(OSError, match=r"Features of images and captions cannot be .*Set `machine\.cache_dir`, or the"):
        prepare_toy(recipe, tmp_path / "run", lambda *progress: pytest.fail("something was encoded"))
