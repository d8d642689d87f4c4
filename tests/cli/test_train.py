"""`palindiff train` from the command line, on a toy text encoder, a toy vae and six images."""

import itertools
import re

import pytest
import yaml
from diffusers import StableDiffusionPipeline

from palindiff.cli import recipe_option
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.device import MachineConfig
from palindiff.training.loop.run_log import read_log
from toys.models import toy_vae
from toys.run import write_images
from toys.text_encoders import write_text_encoders


@pytest.fixture
def recipe(tmp_path):
    """A recipe file that states what a toy run differs in."""
    toy_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "encoders").mkdir()
    text = {"source": str(write_text_encoders(tmp_path / "encoders")["sentence"])}
    tree = {
        "data": {"path": str(write_images(tmp_path / "images"))},
        "text": text,
        "vae": str(tmp_path / "vae"),
        "unet": {"widths": [8, 8], "head_dim": 4, "norm_groups": 4},
        "query_stream": {"num_head_layers": 1, "head_width": 8, "head_dim": 4},
        "loop": {"num_steps": 2, "batch_size": 2, "save_every": 1, "log_every": 1},
        "evaluation": {"naming_steps": 1},
        "machine": {"cache_dir": str(tmp_path / "cache")},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_dry_run_prints_the_recipe_and_its_size_and_writes_nothing(palindiff, recipe, tmp_path):
    code, out, err = palindiff("train", "--recipe", recipe, "--seed", 7, "--dry-run", "--output", tmp_path / "run")
    assert code == 0, err
    assert yaml.safe_load(out.split("\n\n")[0])["loop"]["seed"] == 7
    assert all(f"\n{part}: " in out for part in ("unet", "query_stream", "vae", "text_encoder", "trained", "steps"))
    assert "MB for weights, gradients, Adam and EMA" in out
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_a_preset_is_merged_into_the_recipe_and_named(palindiff, recipe):
    options = ("train", "--recipe", recipe, "--set", "loop.batch_size=64", "--preset")
    code, out, err = palindiff(*options, "24gb", "--set", "machine.precision=fp32", "--dry-run")
    assert code == 0, err
    assert "--preset 24gb" in out.splitlines()[0]
    resolved = yaml.safe_load(out.split("\n\n")[0])
    assert resolved["machine"] | {"cache_dir": None} == MachineConfig(
        gradient_checkpointing=True, ema_device="cpu"
    ).model_dump(mode="json")
    code, _, err = palindiff(*options, "23gb", "--dry-run")
    assert code == 2
    assert "No preset is called `23gb`. The nearest is `24gb`." in err


def test_training_writes_a_stable_diffusion_folder_and_resumes(palindiff, recipe, tmp_path):
    output = tmp_path / "run"
    code, out, err = palindiff("train", "--recipe", recipe, "--output", output)
    assert code == 0, err
    assert "validation_loss" in out
    assert out.splitlines()[-1] == f'next: palindiff generate "a caption" --model {output}/checkpoint'
    stock = StableDiffusionPipeline.from_pretrained(output / "checkpoint", safety_checker=None)
    assert stock("x", num_inference_steps=1, output_type="latent").images.isfinite().all()
    assert yaml.safe_load((output / "recipe.yaml").read_text())["loop"]["num_steps"] == 2
    before = [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")]
    assert palindiff("train", "--recipe", recipe, "--set", "machine.num_threads=1", "--output", output)[0] == 0
    assert [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")] == before
    code, _, err = palindiff("train", "--recipe", recipe, "--set", "query_stream.gamma=0.5", "--output", output)
    assert code == 2
    assert "holds a run of another recipe: `query_stream.gamma` is 0.01 there and 0.5 here." in err
    assert max(line["step"] for line in read_log(output / "log.jsonl")) == 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_computations_are_counted_with_an_estimate(is_terminal, capsys, monkeypatch):
    """On a terminal after each batch, in a log once a minute; what takes one batch is a line alone."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    clock = itertools.count(step=20.0)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    progress = recipe_option.Progress()
    for done in range(64, 641, 64):
        progress("encoding images", done, 640)
    progress("encoding captions", 1, 1)
    err = capsys.readouterr().err
    estimates = re.findall(r"encoding images: .*?(\d+)/640 \[[\d:]+<([\d:?]+)", err)
    assert len(estimates) >= (9 if is_terminal else 3)
    assert is_terminal or len(estimates) < 6
    assert all(left != "?" for _, left in estimates[1:])
    lines = [line.split("\r")[-1] for line in err.split("\n")]
    assert lines == ["encoding images: 640 of 640", "encoding captions: 1 of 1", ""]
