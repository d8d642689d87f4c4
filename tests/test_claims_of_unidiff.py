"""What docs/unidiff.md and the plans say of UniDiff is compared with its result files and the code."""

from palindiff.experiments.adaptation import CPU_SHARE, GPU_SHARE
from palindiff.experiments.adaptation_preset import (
    EPOCHS,
    FEW_IMAGES,
    MAX_STEPS,
    MIN_ROWS,
    MIN_STEPS,
    Device,
    choose_preset,
)
from palindiff.experiments.reproduction.plan import load_plan
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.trainer import recipe_classes
from toys.documents import prose, results


def test_what_unidiff_md_says_of_the_choice_is_the_code_s():
    text = prose("unidiff.md")
    recipe = load_recipe(recipe_classes(), "adapt")
    assert f"fewer than {FEW_IMAGES:,} training images: LoRA" in text
    assert f"{100 * GPU_SHARE:.0f} % of the GPU's memory, or {100 * CPU_SHARE:.0f} % of the machine's" in text
    assert f"as many rows at once as fit, at least {MIN_ROWS}" in text
    assert f"{EPOCHS} passes over the images, but at least {MIN_STEPS} and at most {MAX_STEPS:,} steps" in text
    assert "=64" in " ".join(choose_preset(10_000, Device(2**36, 1), lambda trial: 1).settings)
    assert f"stops after {recipe.evaluation.patience} evaluations" in text
    assert recipe.data.validation_fraction == 0.1
    assert "About one image in ten is held out" in text


def test_the_plan_has_the_rates_and_weights_that_validation_chose():
    plan = load_plan("emoji").settings
    rates, weights = (
        {(row["row"], row["column"]): row["value"] for row in results(name).rows if row["seed"] is None}
        for name in ("unidiff-rates-emoji", "unidiff-weights-emoji")
    )
    recall = "mean recall on validation"
    for arm, setting in (("both", "unidiff"), ("contrastive", "contrastive")):
        best = max(("5e-5", "2e-4", "8e-4"), key=lambda rate: rates[f"{arm}, {rate}", recall])
        assert f"optimizer.learning_rate={float(best):.1e}".replace("e-0", "e-") in plan[setting]
    for arm, setting in (("generation", "generation alone"), ("both, best by the generation loss", "by generation")):
        best = min(("5e-5", "2e-4", "8e-4"), key=lambda rate: rates[f"{arm}, {rate}", "KD-EffLite0"])
        assert f"optimizer.learning_rate={float(best):.1e}".replace("e-0", "e-") in plan[setting]
    for form in ("projected", "relational"):
        best = max(("0.1", "1", "10"), key=lambda weight: weights[f"{form}, {weight}", recall])
        assert f"objective.consistency_weight={best}" in plan[form]
        cosines = [weights[f"{form}, {weight}", "mean cosine on validation"] for weight in ("0.1", "1", "10")]
        assert cosines == sorted(cosines)  # unidiff.md: "smaller ones raise the cosine less"
    low, high = (weights[f"relational, {weight}", "mean cosine on validation"] for weight in ("0.1", "10"))
    assert low < high / 4  # "nearly the same, with a far lower mean cosine"
    assert abs(weights["relational, 0.1", recall] - weights["relational, 10", recall]) < 0.002


def test_what_is_said_of_unidiff_s_claims_is_in_the_result_file():
    found = {row["claim"]: row for row in results("unidiff-claims-emoji").rows}
    assert [found[name]["verdict"] for name in ("U1", "U2")] == ["cannot be decided"] * 2
    assert found["U1"]["difference"] > 0 > found["U2"]["difference"]  # "both differences favour training together"
    assert [found[name]["verdict"] for name in ("U3", "U4")] == ["does not hold here"] * 2
    assert min(found[name]["judged_low"] for name in ("U3", "U4")) > 0  # "both forms raise the mean cosine"
