"""full_size.py: every stage at toy size, and at the real size where there is room for it.

Run at the real size: PALINDIFF_FULL_SIZE=FOLDER pytest tests/test_bench_full_size.py (24 GiB of memory, 20 GB of
disk, half an hour).
"""

import os
from pathlib import Path

import pytest
from benchmarks.full_size import BATCH_SIZE, GENERATION_STEPS, STAGES, Trial, measure, place_of, run_stage

from palindiff.evaluation.results import read_results
from palindiff.training.cost.estimate import Hardware, estimate
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from toys.run import one_thread


def test_every_stage_runs_at_toy_size(tmp_path):
    trial = Trial(tmp_path, ["machine.precision=fp32"], is_toy=True)
    with one_thread():
        said = {stage: run_stage(stage, trial) for stage in STAGES}
    assert all(each["seconds"] > 0 and each["peak_gib"] > 0 for each in said.values())
    assert said["train one step"]["step_s"] > 0
    assert (tmp_path / "run" / "checkpoint" / "query_stream" / "config.json").is_file()
    parameters = said["init"]["parameters"]
    assert parameters["U-Net"] > 0
    assert [place for place in parameters if place.startswith("site")] == [f"site {number}" for number in (1, 2, 3, 4)]


def test_a_weight_s_place_is_told_by_its_name():
    assert place_of("sites.0.into.weight") == "site 1"
    assert place_of("head.5.ffn.net.2.bias") == "query head"
    assert place_of("log_logit_scale") == place_of("image_into_head.weight") == "into and out of the head"


@pytest.mark.slow
def test_the_estimate_is_that_of_the_measured_full_size_run():
    """15 % is what is promised; the interpreter and its libraries, about half a gigabyte, are in the measure alone."""
    results = read_results(Path(__file__).parents[2] / "results" / "full_size.json")
    (measured,) = [row["peak_gib"] for row in results.rows if row.get("stage") == "train one step"]
    overrides = [*results.settings["overrides"], f"loop.batch_size={results.settings['batch_size']}"]
    recipe = load_recipe(DiffDisRecipe, results.settings["recipe"], overrides)
    told = estimate(recipe, Hardware(device="cpu"))
    assert told.memory_bytes.peak / 2**30 == pytest.approx(measured, rel=0.15)
    parameters = {row["place"]: row["parameters"] for row in results.rows if row["kind"] == "parameters"}
    assert parameters.pop("U-Net") == told.parameters.parts["unet"]
    assert sum(parameters.values()) == sum(told.parameters.new.values())


@pytest.mark.full_size
@pytest.mark.skipif("PALINDIFF_FULL_SIZE" not in os.environ, reason="PALINDIFF_FULL_SIZE names no folder to work in")
def test_the_full_size_model_goes_through_everything():
    rows = measure(Trial(Path(os.environ["PALINDIFF_FULL_SIZE"]), ["optimizer.kind=adamw_8bit"]))
    stages = {row["stage"]: row for row in rows if row["kind"] == "stage"}
    assert list(stages) == list(STAGES)
    assert all(row["peak_gib"] < 24 for row in stages.values())
    new = sum(row["parameters"] for row in rows if row["kind"] == "parameters" and row["place"] != "U-Net")
    assert 80e6 < new < 150e6
    assert (BATCH_SIZE, GENERATION_STEPS) == (2, 2), "what docs/stable_diffusion.md says of the table"
