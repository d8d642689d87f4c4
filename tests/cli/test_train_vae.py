"""`palindiff train-vae` from the command line: dry run, training, going on, and a folder of another recipe."""

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from palindiff.cli.model_option import open_model
from palindiff.pretrained.bundled import load_vae
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import read_log
from palindiff.training.recipes.build_models import build_models
from palindiff.training.recipes.schema import ModelRecipe
from toys.recipe import recipe_tree, toy_recipe, train_toy_recipe
from toys.run import TOY_VAE, write_images


@pytest.fixture
def recipe(tmp_path):
    """A recipe file of a toy vae on six images."""
    data = {"path": str(write_images(tmp_path / "images"))}
    loop = {"num_steps": 2, "batch_size": 2, "save_every": 1, "log_every": 1}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": data, "vae": TOY_VAE.model_dump(mode="json"), "loop": loop}))
    return str(path)


def test_a_dry_run_prints_the_recipe_and_its_size_and_writes_nothing(palindiff, recipe, tmp_path):
    code, out, _ = palindiff("train-vae", "--recipe", recipe, "--seed", 7, "--dry-run", "--output", tmp_path / "run")
    assert code == 0
    assert yaml.safe_load(out.split("\n\n")[0])["loop"]["seed"] == 7
    assert "trained: 14,113\n" in out
    assert "memory: 0 MB for weights, gradients, Adam and EMA" in out
    assert "steps: 2\n" in out
    assert not (tmp_path / "run").exists()


def test_train_runs_the_recipe_of_a_vae_too(palindiff, recipe, tmp_path):
    command = ("train", "--recipe", recipe, "--set", "objective.name=vae")
    code, out, _ = palindiff(*command, "--dry-run")
    assert code == 0
    assert "trained: 14,113\n" in out
    assert "steps: 2\n" in out
    code, out, err = palindiff(*command, "--output", tmp_path / "run")
    assert code == 0, err
    assert "validation_psnr_db" in out
    assert AutoencoderKL.from_pretrained(tmp_path / "run" / "vae").config.latent_channels == 2


def test_a_recipe_of_another_objective_is_refused(palindiff):
    code, _, err = palindiff("train-vae", "--recipe", "emoji", "--dry-run")
    assert code == 2
    assert "`objective.name`: found 'diffdis'. Expected 'vae'." in err


def test_training_writes_a_stock_vae_and_the_resolved_recipe(palindiff, recipe, tmp_path):
    output = tmp_path / "run"
    code, out, err = palindiff("train-vae", "--recipe", recipe, "--set", "objective.kl_weight=0.5", "--output", output)
    assert code == 0, err
    assert AutoencoderKL.from_pretrained(output / "vae").config.latent_channels == 2
    assert yaml.safe_load((output / "recipe.yaml").read_text())["objective"]["kl_weight"] == 0.5
    assert "validation_psnr_db" in out
    assert out.splitlines()[-2] == f"written to {output}"
    assert out.splitlines()[-1] == f"next: palindiff train --recipe emoji --set vae={output}/vae"


def test_the_same_command_resumes_and_another_recipe_is_refused(palindiff, recipe, tmp_path):
    output = tmp_path / "run"
    palindiff("train-vae", "--recipe", recipe, "--output", output)
    before = [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")]
    assert palindiff("train-vae", "--recipe", recipe, "--set", "machine.num_threads=1", "--output", output)[0] == 0
    assert [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")] == before
    code, out, err = palindiff("train-vae", "--recipe", recipe, "--set", "loop.batch_size=3", "--output", output)
    assert (code, out) == (2, "")
    assert "holds a run of another recipe: `loop.batch_size` is 2 there and 3 here." in err
    assert max(line["step"] for line in read_log(output / "log.jsonl")) == 2
    assert palindiff("train-vae", "--recipe", recipe, "--set", "loop.num_steps=3", "--output", output)[0] == 0
    assert max(line["step"] for line in read_log(output / "log.jsonl")) == 3  # a longer run goes on


def test_a_run_is_written_to_runs_by_default(palindiff, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert palindiff("train-vae", "--recipe", recipe)[0] == 0
    assert (tmp_path / "runs" / "toy" / "vae" / "config.json").exists()


def test_missing_images_are_one_line_and_can_be_fixed_in_the_same_folder(palindiff, recipe, tmp_path):
    output = tmp_path / "run"
    code, _, err = palindiff(
        "train-vae", "--recipe", recipe, "--set", f"data.path={tmp_path}/nowhere", "--output", output
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "nowhere" in err
    assert palindiff("train-vae", "--recipe", recipe, "--output", output)[0] == 0


def test_the_folder_of_a_run_serves_wherever_its_result_does(palindiff, recipe, toy_parts, tmp_path):
    run = tmp_path / "vae-run"
    code, _, err = palindiff("train-vae", "--recipe", recipe, "--output", run)
    assert code == 0, err
    weights = [load_vae(str(source)).state_dict() for source in (run, run / "vae")]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
    with pytest.raises(FileNotFoundError, match=r"holds no VAE: it has no config\.json\. Expected 'bundled'"):
        load_vae(str(tmp_path))
    train_toy_recipe(toy_recipe(toy_parts), tmp_path / "run")
    pipelines = [open_model(str(source), "cpu") for source in (tmp_path / "run", tmp_path / "run" / "checkpoint")]
    assert torch.equal(*(each.unet.conv_in.weight for each in pipelines))
    base = {
        "base": {"source": str(tmp_path / "run")},
        "text": {},
        "query_stream": recipe_tree(toy_parts)["query_stream"],
    }
    built = build_models(ModelRecipe.model_validate(base), 0)
    assert torch.equal(built.unet.conv_in.weight, pipelines[0].unet.conv_in.weight)
