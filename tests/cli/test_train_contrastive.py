"""`palindiff train --recipe clip-emoji` from the command line: dry run, training, resuming, and `estimate`."""

import pytest
import yaml

from palindiff.inference.clip_model import ClipModel
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import read_log
from toys.contrastive import TOY_VIT
from toys.recipe import write_drawings

pytestmark = pytest.mark.filterwarnings("ignore:A micro-batch has")


@pytest.fixture
def options(toy_parts, tmp_path):
    """The bundled recipe on toy data and at toy size."""
    small = {"data.path": toy_parts / "images", "text.source": toy_parts / "encoder", "text.max_length": 12,
             "machine.precision": "fp32", "machine.cache_dir": tmp_path / "cache", "loop.num_steps": 2,
             "loop.batch_size": 4, "loop.save_every": 1, "views.crops": 1, "data.caption_column": "null"}  # fmt: skip
    small |= {f"image_encoder.{name}": value for name, value in TOY_VIT.model_dump().items()}
    return ["--recipe", "clip-emoji", *(f"--set={key}={value}" for key, value in small.items())]


def test_a_dry_run_prints_the_recipe_and_its_size_and_writes_nothing(palindiff, options, tmp_path):
    code, out, err = palindiff("train", *options, "--seed", 7, "--dry-run", "--output", tmp_path / "run")
    assert code == 0, err
    tree = yaml.safe_load(out.split("\n\n")[0])
    assert (tree["loop"]["seed"], tree["objective"]["name"]) == (7, "contrastive")
    sizes = dict(line.split(": ") for line in out.split("\n\n")[1].splitlines())
    assert int(sizes["trained"].replace(",", "")) == int(sizes["image_encoder"].replace(",", "")) + 1
    assert sizes["steps"] == "2"
    assert not (tmp_path / "run").exists()


def test_training_writes_a_model_and_the_same_command_resumes(palindiff, options, tmp_path, toy_parts):
    output = tmp_path / "run"
    code, out, err = palindiff("train", *options, "--output", output)
    assert code == 0, err
    assert f"written to {output}" in out
    model = ClipModel.from_pretrained(output / "clip")
    assert (
        model.encode_image(toy_parts / "images" / "train" / "0.png").shape == model.encode_text(["a"]).shape == (1, 32)
    )
    assert {"image_to_text_recall_1", "zero_shot_top_1"} <= read_log(output / "log.jsonl")[-1].keys()
    before = [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")]
    assert palindiff("train", *options, "--output", output)[0] == 0
    assert [(state.name, state.stat().st_mtime_ns) for state in saved_states(output / "state")] == before
    code, _, err = palindiff("train", *options, "--set", "image_encoder.num_layers=1", "--output", output)
    assert code == 2
    assert "`image_encoder.num_layers` is 2 there and 1 here" in err


def test_an_image_that_cannot_be_read_is_one_line(palindiff, options, tmp_path):
    images = write_drawings(tmp_path / "images")
    (images / "train" / "3.png").write_bytes(b"\x89PNG")
    code, _, err = palindiff("train", *options, "--set", f"data.path={images}", "--output", tmp_path / "run")
    assert code == 2
    assert "3.png" in err
    assert err.rstrip().splitlines()[-1].startswith("palindiff: ")


@pytest.mark.parametrize(("recipe", "name"), [("clip-emoji", "contrastive"), ("vae-emoji", "vae")])
def test_estimate_refuses_what_it_does_not_count(palindiff, recipe, name):
    code, out, err = palindiff("estimate", "--recipe", recipe)
    assert (code, out) == (2, "")
    assert err == (
        f"palindiff: `objective.name` of `{recipe}` is '{name}' in `palindiff estimate`. Expected 'diffdis' or "
        f"'unidiff', whose parts are estimated. Use `palindiff train --recipe {recipe} --dry-run` for parameters and "
        "memory.\n"
    )
