"""`palindiff estimate` from the command line: its table, its JSON, and every option."""

import json

import pytest
import yaml

from palindiff.cli.estimate import BYTE_UNITS, WORK_UNITS, scaled
from toys.recipe import recipe_tree


@pytest.fixture(scope="module")
def cached():
    """Documents of this file's recipe by their options: an estimate takes seconds."""
    return {}


@pytest.fixture
def recipe(toy_parts, tmp_path):
    """A recipe file on a data set that is not there."""
    tree = recipe_tree(
        toy_parts, data={"path": "nowhere"}, unet={"widths": [32]}, machine={"cache_dir": str(tmp_path / "cache")}
    )
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "toy.yaml"


@pytest.fixture
def estimated(palindiff, recipe, cached):
    """Estimate with options -> the JSON document."""

    def run(*options):
        if options not in cached:
            code, out, err = palindiff("estimate", "--recipe", recipe, "--json", *options)
            assert code == 0, err
            cached[options] = json.loads(out)
        return cached[options]

    return run


def test_a_table_has_every_section_and_writes_nothing(palindiff, recipe, tmp_path):
    code, out, err = palindiff("estimate", "--recipe", recipe, "--images", 12, "--device-tflops", 0.5)
    assert code == 0, err
    names = {line.strip("│").split("│")[0].strip() for line in out.splitlines() if line.startswith("│")}
    assert {"unet", "query_stream", "vae", "text_encoder", "trained", "site 1, 32 wide", "head"} <= names
    assert {"weights", "gradients", "optimizer", "ema", "frozen", "activations", "peak"} <= names
    assert {"generation", "alignment", "VAE", "reading", "denoising", "an image", "a caption"} <= names
    assert {"memory of a process, gpu", "12 images", "a step", "the run", "trained on", "named"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


def test_json_holds_the_question_and_the_answer(estimated):
    found = estimated()
    assert found["set"] == []
    assert (found["device"], found["processes"], found["device_tflops"], found["images"]) == ("gpu", 1, None, None)
    assert found["time"] is None
    assert found["disk_bytes"]["total"] is None
    assert found["tflop"]["whole_step"] == pytest.approx(sum(found["tflop"]["step"].values()))
    assert found["memory_bytes"]["peak"] > found["memory_bytes"]["weights"]
    assert found["parameters"]["trained"] == sum(
        found["parameters"]["parts"][name] for name in ("unet", "query_stream")
    )


def test_options_change_what_they_say(estimated):
    alone = estimated()
    found = estimated("--set", "machine.precision=bf16", "--set", "unet.widths=[16]", "--device", "cpu",
                      "--processes", 2, "--images", 1000, "--device-tflops", 0.25)  # fmt: skip
    assert found["set"] == ["machine.precision=bf16", "unet.widths=[16]"]
    assert found["memory_bytes"]["activations"] != alone["memory_bytes"]["activations"]
    assert (alone["memory_bytes"]["exchange"], found["memory_bytes"]["exchange"] > 0) == (0, True)
    assert found["disk_bytes"]["total"] == 1000 * (found["disk_bytes"]["image"] + found["disk_bytes"]["caption"])
    assert found["time"]["step_s"] == pytest.approx(found["tflop"]["whole_step"] / 0.5)
    assert found["parameters"]["trained"] < alone["parameters"]["trained"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "unet.width=[32]"], "unet.width"),
        (["--set", "text.source=nobody/nothing"], "No text encoder `nobody/nothing`"),
        (["--processes", "3"], "`loop.batch_size` is 4 with accumulation 1 and 3 processes"),
        (["--processes", "0"], "--processes"),
        (["--images", "0"], "--images"),
        (["--device-tflops", "0"], "--device-tflops"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_what_cannot_be_is_refused(options, sentence, palindiff, recipe):
    code, out, err = palindiff("estimate", "--recipe", recipe, *options)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    ("number", "units", "text"),
    [
        (1.5e9, BYTE_UNITS, "1.50 GB"),
        (20e6, BYTE_UNITS, "20.00 MB"),
        (12, BYTE_UNITS, "0.01 kB"),
        (3456.0, WORK_UNITS, "3,456.00 TFLOP"),
        (0.002, WORK_UNITS, "2.00 GFLOP"),
        (0.0, WORK_UNITS, "0.00 MFLOP"),
    ],
)
def test_a_number_is_written_in_its_unit(number, units, text):
    assert scaled(number, units) == text
