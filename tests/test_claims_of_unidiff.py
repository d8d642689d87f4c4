"""What docs/unidiff.md and the plans say of UniDiff is compared with its result files and the code."""

from statistics import fmean

import pytest

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

WAYS = ("image to text", "text to image")


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


def test_what_is_said_of_unidiff_s_table_is_in_the_result_file():
    found = results("unidiff-emoji")
    shown = {(row["row"], row["column"]): row["value"] for row in found.rows if row["seed"] is None}
    consistent = "the better consistency"
    sizes = {
        "": ("contrastive", "both", "both, consistency relational"),
        **{size: tuple(f"{size} images: {arm}" for arm in ("contrastive", "both", f"both, {consistent}"))
           for size in ("500", "2,000")},
    }  # fmt: skip
    text = prose("unidiff.md")
    gains = {}
    for size, (contrastive, both, consistency) in sizes.items():
        recall = {arm: fmean(shown[arm, f"R@10 {way}"] for way in WAYS) for arm in (contrastive, both)}
        gains[size] = 100 * (recall[both] - recall[contrastive])
        for arm in (contrastive, both):
            assert shown[arm, "mean cosine"] < shown["CLIP before", "mean cosine"]  # nothing collapsed
            assert shown[arm, "effective rank"] > shown["CLIP before", "effective rank"]
        assert shown[consistency, "mean cosine"] > 2 * shown["CLIP before", "mean cosine"]  # "far above"
        assert shown[both, "effective rank"] > shown[consistency, "effective rank"]  # "lose few others"
        assert shown[consistency, "effective rank"] > shown["CLIP before", "effective rank"]
        kept = [shown[arm, "accuracy on the first styles"] for arm in ("CLIP before", contrastive, both)]
        assert 0.1 > kept[0] > kept[1] > kept[2]
        assert shown[consistency, "accuracy on the first styles"] < kept[1]
    assert "by half a point and by three points" in text
    assert abs(gains["500"] - 0.5) < 0.25
    assert abs(gains["2,000"] - 3) < 0.5
    projected = "both, consistency projected"
    assert shown["CLIP before", "mean cosine"] > shown[projected, "mean cosine"] > shown["both", "mean cosine"]
    assert shown[projected, "effective rank"] > shown["CLIP before", "effective rank"]
    kept = {row: value for (row, column), value in shown.items() if column == "accuracy on the first styles"}
    of_start = kept.pop("CLIP before")
    assert all(value < of_start for row, value in kept.items() if not row.startswith("generation"))
    mixed = [row for row in kept if row.endswith(", interpolated")]
    assert len(mixed) == 11
    assert all(kept[row] - kept[row.removesuffix(", interpolated")] < 0.01 for row in mixed)  # "little more is kept"
    steps = {(row["variant"], row["seed"]): row["steps"] for row in found.rows if "steps" in row}
    stopped = [variant for (variant, _), number in steps.items() if variant.startswith("uni-") and number < 200]
    assert len(stopped) == 3
    assert all(variant.endswith(("-500", "-2000")) for variant in stopped)
    assert "of the three runs with 500 and 2,000 images that stopped early" in prose("protocol.md")
    plan = load_plan("emoji").settings
    both, contrastive = (
        float(text.partition("=")[2])
        for name in ("unidiff", "contrastive") for text in plan[name] if "optimizer.learning_rate=" in text
    )  # fmt: skip
    assert both == pytest.approx(4 * contrastive)  # "four times as large"
    shares = {(row["row"], row["seed"]): row["share"] for row in found.rows if "share" in row}
    assert 2 * sum(share == 1 for share in shares.values()) > len(shares)  # "in most runs"
    assert min(shares.values()) == 0.7


def test_the_better_consistency_is_that_with_the_higher_recall_on_validation():
    recall = {row["row"]: row["value"] for row in results("unidiff-emoji").rows
              if row["seed"] is None and row["column"] == "mean recall on validation"}  # fmt: skip
    forms = ("both, consistency projected", "both, consistency relational")
    assert max(forms, key=recall.__getitem__).endswith("relational")
    plan = load_plan("emoji").settings
    assert plan["better consistency"] == plan["relational"]
    assert set(plan["relational"]) == set(load_plan("photos").variants["uni-consistency"].set)
    assert "Validation chose `relational`" in prose("protocol.md")


def test_what_is_said_of_clothes_is_in_the_result_file():
    rows = [row for row in results("unidiff-clothing").rows if row["seed"] is None]
    shown = {(row["row"], row["column"]): row["value"] for row in rows}
    before, arms = "CLIP before", ("contrastive", "both", "both, the better consistency")
    contrastive, both, consistency = arms
    of_kinds = {arm: shown[arm, "mean average precision by kind"] for arm in (before, *arms)}
    accuracy = {arm: shown[arm, "kind of clothing"] for arm in (before, *arms)}
    (chance,) = {row["chance"] for row in rows if row["column"] == "kind of clothing"}
    assert abs(accuracy[before] - chance) < 0.01
    assert all(of_kinds[arm] > 2 * of_kinds[before] for arm in arms)  # "more than doubles"
    assert all(2.5 < accuracy[arm] / accuracy[before] < 3.5 for arm in arms)  # "triples"
    assert "the most frequent class has 114 of the 523 test images" in prose("photo_sets.md")
    assert max(accuracy.values()) < 114 / 523
    assert max(of_kinds[arm] for arm in arms) - min(of_kinds[arm] for arm in arms) < 0.01
    assert (
        shown[both, "KD-EffLite0"]
        < shown[contrastive, "KD-EffLite0"]
        < shown["Stable Diffusion before", "KD-EffLite0"]
    )
    assert shown[consistency, "mean cosine"] > 0.9 > 3 * shown[before, "mean cosine"]
    ranks = {arm: shown[arm, "effective rank"] for arm in (before, *arms)}
    assert all(shown[arm, "mean cosine"] < shown[before, "mean cosine"] for arm in (contrastive, both))
    assert ranks[consistency] < ranks[before] < min(ranks[contrastive], ranks[both])
    assert ranks[consistency] / ranks[before] > 0.9  # "a little below"
    for column, within in (("kind of clothing", 0.01), ("effective rank", 0.1), ("mean cosine", 0.01)):
        assert abs(shown[both, column] - shown[contrastive, column]) < within  # "hardly changes what CLIP learns"
    kept = {arm: shown[arm, "recall@10 kept on Flickr8k"] for arm in (before, *arms)}
    assert all(0.4 < kept[arm] / kept[before] < 0.6 for arm in (contrastive, both))
    assert 0.2 < kept[consistency] / kept[before] < 0.3
