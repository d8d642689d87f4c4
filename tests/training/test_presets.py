"""presets/: each fits its card with room to spare, and documents quote what was estimated."""

from pathlib import Path

import pytest

from palindiff.evaluation.results import read_results
from palindiff.training.cost.estimate import Hardware, estimate
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe, preset_names

ROWS = {row["preset"]: row for row in read_results(Path(__file__).parents[2] / "results" / "presets.json").rows}


def test_every_preset_is_estimated_and_leaves_a_tenth_of_its_card_free():
    """For the driver, kernels and the allocator; a card called 24 GB has 24 GiB."""
    assert set(ROWS) == set(preset_names())
    for preset, row in ROWS.items():
        assert row["card_gb"] == pytest.approx(int(preset.removesuffix("gb")) * 2**30 / 1e9)
        assert row["peak_gb"] < 0.9 * row["card_gb"]
        assert row["negatives"] == 255  # the paper's, as docs/memory.md says


@pytest.mark.slow
def test_the_rows_are_what_is_estimated_now():
    found = estimate(load_recipe(DiffDisRecipe, "diffdis-cc3m", preset="12gb"), Hardware())
    assert found.memory_bytes.peak / 1e9 == pytest.approx(ROWS["12gb"]["peak_gb"], rel=1e-3)
    assert set(found.tflop.step) == {"generation", "alignment", "captions"}
    assert found.tflop.whole_step == pytest.approx(ROWS["12gb"]["step_tflop"], rel=1e-3)
