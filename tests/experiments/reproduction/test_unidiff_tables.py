"""Tables of UniDiff: two starts, arms that are trained from them, interpolation with the start, claims of a family."""

import json

import pytest
import torch
import yaml

from palindiff.evaluation.collapse import counted_mean_cosine, mean_pairwise_cosine
from palindiff.evaluation.results import write_results
from palindiff.experiments.reproduction import verdicts
from palindiff.experiments.reproduction.interpolation import interpolate
from palindiff.experiments.reproduction.measurement import IMAGE_EMBEDDINGS, Measurement
from palindiff.experiments.reproduction.plan import Plan, load_plan
from palindiff.experiments.reproduction.plan_sections import InterpolationPlan, NamingPlan
from palindiff.experiments.reproduction.report import page
from palindiff.experiments.reproduction.reproduce import ReproduceOptions, Reproduction
from palindiff.pretrained.unidiff_folders import load_unidiff
from palindiff.training.recipes.build_unidiff import load_start
from toys.contrastive import contrastive_tree
from toys.plan import QUIET

KINDS = {"path": "{data}/images", "split": "validation", "templates": ["a {}"], "retrieval_ks": [1, 3], "recall_k": 3,
         "tasks": ["retrieval", "classification", "class_retrieval", "collapse"]}  # fmt: skip
COLUMNS = {
    "recall": {"title": "recall@3", "metrics": ["text_retrieval_recall@3"], "data": ["kinds"]},
    "kinds": {"title": "mean average precision", "metrics": ["class_retrieval_map"], "data": ["kinds"]},
    "cosine": {
        "title": "mean cosine",
        "metrics": ["image_mean_pairwise_cosine"],
        "data": ["kinds"],
        "is_share": False,
    },
}
NAMING = NamingPlan()
ALONE = ["objective.generation_weight=0", "objective.consistency_weight=0"]
UNI = {"recipe": "adapt", "needs": ["clip", "model"]}


@pytest.fixture
def tree(plan_tree, parts):
    """A plan with a CLIP, a model that generates, and two arms."""
    (parts / "clip.yaml").write_text(yaml.safe_dump(contrastive_tree(parts, parts / "encoder")))
    adapt = [
        "clip.source={runs}/clip-seed0/clip", "stable_diffusion.source={runs}/model-seed0/checkpoint", "trained=all",
        "data.path={data}/images", "data.where=[caption=a *]", "data.num_images=8", "data.validation_fraction=0",
        "loop.num_steps=4", "loop.batch_size=4", "loop.evaluate_every=1", "loop.save_every=2", "loop.ema_decay=0.5",
        "evaluation.patience=2", "optimizer.learning_rate=0.01", "optimizer.warmup_steps=1", "machine.log_with=[]",
        "machine.cache_dir={data}/cache",
    ]  # fmt: skip
    plan_tree["settings"] |= {"clip": [*QUIET, "data.path={data}/images"], "adapt": adapt}
    plan_tree["variants"] |= {
        "clip": {"recipe": str(parts / "clip.yaml"), "use": ["clip"], "seeds": [0]},
        "model": {"set": ["objective.task=generation"], "seeds": [0]},
        "contrastive": {**UNI, "use": ["adapt"], "set": ALONE},
        "relational": {**UNI, "use": ["adapt"], "set": ["objective.consistency=relational"]},
    }
    plan_tree["naming"]["kinds"] = dict(KINDS)
    plan_tree["columns"] |= COLUMNS
    plan_tree["tables"]["unidiff"] = {
        "title": "UniDiff", "generation": "few", "columns": [*COLUMNS, "kd"], "stem": "unidiff-toys",
        "rows": [
            {"label": "before", "variant": "clip"},
            {"label": "contrastive", "variant": "contrastive"},
            {"label": "relational", "variant": "relational", "generates": True},
            {"label": "interpolated", "variant": "relational", "generates": True,
             "interpolation": {"data": "kinds", "shares": [0.5, 1.0]}},
        ],
    }  # fmt: skip
    claim = {"family": "unidiff-claims", "text": "text", "a": "relational", "b": "contrastive", "has_budgets": False}
    plan_tree["claims"] |= {"U1": {**claim, "data": ["kinds"]}, "U2": {**claim, "metric": "cosine", "data": ["kinds"]}}
    return plan_tree


def make(tree, parts, write_plan, tmp_path, target):
    said = []
    options = ReproduceOptions(target, write_plan(tree), parts, tmp_path / "runs", tmp_path / f"{target}.json")
    return Reproduction(options, said.append), said


def test_a_table_and_its_claims(tree, parts, write_plan, tmp_path):
    made, said = make(tree, parts, write_plan, tmp_path, "unidiff")
    rows = made.run("a command")
    assert [line.partition(":")[0] for line in said] == [
        "clip-seed0", "model-seed0", "contrastive-seed0", "contrastive-seed1", "relational-seed0", "relational-seed1"
    ]  # fmt: skip
    columns = {(row["row"], row["column"]): row for row in rows if row["seed"] is None}
    titles = [each["title"] for each in COLUMNS.values()]
    assert set(columns) == {
        *((label, title) for label in ("before", "contrastive", "relational", "interpolated") for title in titles),
        ("relational", "KD"), ("interpolated", "KD"),
    }  # fmt: skip
    assert columns["before", "mean cosine"]["ci_low"] is None
    assert all(row["train_tflop"] > 0 for row in rows if row["seed"] is not None)
    assert {row["share"] for row in rows if row["row"] == "interpolated" and row["seed"] is not None} <= {0.5, 1.0}
    own = made.model_run("relational", 0)
    assert own.result.is_dir()
    best = json.loads((own.folder / "best.json").read_text())["step"]
    assert {row["best_step"] for row in rows if row["row"] == "relational" and row["seed"] == 0} == {best}
    assert not any("best_step" in row for row in rows if row["row"] == "before")
    assert own.origin.keys() == {"training images", "validation images", "clip-seed0", "model-seed0"}

    judge, _ = make(tree, parts, write_plan, tmp_path, "unidiff-claims")
    judged = judge.run("a command")
    assert [row["claim"] for row in judged] == ["U1", "U2"]
    assert {row["commits"] for row in judged} == {own.commit}
    e = [judge.measured.naming(made.model_run(arm, seed), NAMING, "kinds", []).items[IMAGE_EMBEDDINGS]
         for arm in ("relational", "contrastive") for seed in (0, 1)]  # fmt: skip
    cosines = [mean_pairwise_cosine(each) for each in e]
    assert judged[1]["difference"] == pytest.approx(sum(cosines[:2]) / 2 - sum(cosines[2:]) / 2)
    assert judged[1]["n"] == 6


def test_interpolated_weights_lie_between_those_of_start_and_result(tree, parts, write_plan, tmp_path):
    tree["tables"]["unidiff"]["rows"] = [{"label": "relational", "variant": "relational", "seeds": [0]}]
    tree["tables"]["unidiff"] |= {"columns": ["recall"], "generation": None}
    made, _ = make(tree, parts, write_plan, tmp_path, "unidiff")
    made.run("a command")
    run = made.model_run("relational", 0)
    start, (clip, pipeline) = load_start(run.own_recipe), load_unidiff(run.result)
    before, after = start.unet.conv_in.weight.clone(), pipeline.unet.conv_in.weight.clone()
    text = [each.state_dict() for each in (start.clip.text_encoder.model, pipeline.text_encoder)]
    text = [{name: weight.clone() for name, weight in each.items()} for each in text]
    interpolate(start, clip, pipeline, 0.25)
    torch.testing.assert_close(pipeline.unet.conv_in.weight, 0.75 * before + 0.25 * after)
    name = next(each for each in text[0] if each.endswith("query.weight"))
    expected = 0.75 * text[0][name] + 0.25 * text[1][name]
    torch.testing.assert_close(pipeline.text_encoder.state_dict()[name], expected)
    torch.testing.assert_close(clip.text_encoder.model.state_dict()[name], expected)
    start.unet.register_parameter("other", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="The U-Net has no weight `other`, which its start has"):
        interpolate(start, clip, pipeline, 0.25)


def test_the_share_with_the_best_validation_recall_is_chosen_and_of_equals_the_largest(
    tree, parts, write_plan, tmp_path
):
    made, _ = make(tree, parts, write_plan, tmp_path, "unidiff")
    recalls = {0.0: (0.2, 0.2), 0.5: (0.4, 0.8), 0.8: (0.6, 0.6), 1.0: (0.1, 0.9)}  # at 1 and at 3

    def naming(run, setting, name, settings, share):
        ways = dict(zip((1, 3), (torch.full((4,), recall) for recall in recalls[share]), strict=True))
        return Measurement([], {f"{way}_retrieval_recall@{k}": ways[k] for way in ("text", "image") for k in (1, 3)})

    made.measured.naming = naming
    plan = InterpolationPlan(data="kinds", shares=(0.0, 1.0, 0.8, 0.5))
    assert made.measured.chosen_share(made.model_run("relational", 0), plan) == 0.8


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tree: tree["naming"]["kinds"].update(split="test"), r"chooses on `naming\.kinds`, a test split"),
        (lambda tree: tree["naming"]["kinds"].update(tasks=["collapse"]), r"chooses by recall on `naming\.kinds`"),
        (lambda tree: tree["claims"]["U1"].update(family="table4"), r"`table4` is a family of claims and a table"),
        (lambda tree: tree["claims"]["U1"].update(generation="few"), r"`claims\.U1` has `generation`, and recall"),
        (lambda tree: tree["tables"]["unidiff"]["rows"][3]["interpolation"].update(shares=[1.5]), r"or equal to 1"),
    ],
)  # fmt: skip
def test_a_plan_whose_comparison_would_mean_something_else_is_refused(change, sentence, tree, write_plan):
    change(tree)
    with pytest.raises(ValueError, match=sentence):
        load_plan(write_plan(tree))


def test_interpolation_of_another_model_is_refused_before_any_training(tree, parts, write_plan, tmp_path):
    tree["tables"]["unidiff"]["rows"][3]["variant"] = "both"
    made, said = make(tree, parts, write_plan, tmp_path, "unidiff")
    with pytest.raises(ValueError, match="interpolates `both` with its start, and it is no UniDiff"):
        made.run("a command")
    assert said == []


def test_an_image_that_was_drawn_twice_is_not_compared_with_itself():
    e = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    counts = torch.tensor([[2.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
    drawn = [0, 0, 2, 3, 4]
    cosines = e.double() @ e.double().T
    pairs = [cosines[a, b] for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j and a != b]
    found = counted_mean_cosine(e, counts)
    assert float(found[0]) == pytest.approx(float(sum(pairs) / len(pairs)), rel=1e-4)  # unit in float32
    assert float(found[1]) == pytest.approx(mean_pairwise_cosine(e))


def test_a_lower_cosine_decides_for_the_side_that_has_it():
    spread = torch.eye(16).repeat(1, 4).view(16, 64) / 2
    close = torch.nn.functional.normalize(torch.ones(16, 64) + spread, dim=1)
    units = {IMAGE_EMBEDDINGS: torch.arange(len(spread))}
    sides = [[Measurement([], {IMAGE_EMBEDDINGS: each}, units)] * 2 for each in (spread, close)]
    found = verdicts.compare_cosine((sides[0], sides[1]), 200)
    low, high = found.interval()
    assert high < 0
    assert found.difference == pytest.approx((low + high) / 2)  # all resamples are alike


def test_a_table_s_result_has_its_own_name_where_the_plan_gives_one(tree, tmp_path):
    plan = Plan.model_validate(tree)
    assert plan.result_file("unidiff", "toys") == "unidiff-toys.json"
    assert plan.result_file("table4", "toys") == "table4-toys.json"
    assert plan.families == ["claims", "unidiff-claims"]
    assert load_plan("photos").result_file("unidiff", "photos") == "unidiff-clothing.json"
    assert load_plan("emoji").result_file("unidiff", "emoji") == "unidiff-emoji.json"


def test_claims_of_a_family_are_shown_together_on_the_page(tmp_path):
    for family, claim in (("claims", "P1"), ("unidiff-claims", "U1")):
        row = {
            "claim": claim, "budget": "steps", "metric": "recall", "difference": 1.0, "judged_low": 0.5,
            "judged_high": 2.0, "level": 0.95, "num_seeds": 3, "n": 310, "verdict": "holds here", "commits": "1234567",
        }  # fmt: skip
        write_results(tmp_path / f"{family}-emoji.json", [row], "a command", {}, 0, 1.0)
    text = page(tmp_path)
    first, second = text.index("### Claims\n"), text.index("### Claims of UniDiff\n")
    assert first < text.index("alignment gains from generation") < second < text.index("CLIP gains from generation")
