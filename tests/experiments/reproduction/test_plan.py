"""plan.py: plan files are checked when they are read, and the bundled ones name what exists."""

import pytest

from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import load_plan, plan_names


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tree: tree.update(primary="nothing"), r"`primary` names the naming `nothing`\. Expected one of valid"),
        (lambda tree: tree["variants"]["both"].update(start="x"), r"`variants.both` names the variant `x`"),
        (lambda tree: tree["tables"]["table5"].update(generation="y"), r"`tables.table5` names the generation `y`"),
        (lambda tree: tree["claims"]["P1"].update(b="z"), r"`claims.P1` names the variant `z`"),
        (
            lambda tree: tree["naming"]["validation"].update(recall_k=7),
            r"`recall_k` is 7, and `retrieval_ks` \[1, 3\]",
        ),
        (
            lambda tree: tree["columns"]["recall"].update(metrics=["acc7"]),
            r"`columns.recall` shows acc7, which `naming.validation` does not measure\. Expected one of acc1",
        ),
        (
            lambda tree: tree["tables"]["table4"].update(columns=["recall"]),
            r"`tables.table4` has rows that generate, a column of generation, or `generation`, but not all",
        ),
        (
            lambda tree: tree["tables"]["table8"].update(columns=["colour"]),
            r"`tables.table8` names the column `colour`",
        ),
        (lambda tree: tree.update(seeds=[0, 1, 0]), r"`seeds` are \[0, 1, 0\]\. Expected each once"),
        (
            lambda tree: tree["tables"]["table8"]["rows"][1].update(label="1"),
            r"`tables.table8` has 2 rows `1`\. Expected each label once",
        ),
        (
            lambda tree: tree["variants"]["both"].update(same_flop_as="alignment-long"),
            r"`variants.(both|alignment-long)` costs as much as itself",
        ),
        (
            lambda tree: (
                tree["claims"].update(P2={"text": "t", "a": "both", "b": "both", "metric": "kd"})
                or tree.pop("claimed_generation")
            ),
            r"`claims\.P2` compares generation\. Expected `claimed_generation`",
        ),
        (lambda tree: tree.update(colour="red"), r"`colour`: found an unknown key"),
    ],
)
def test_a_plan_that_names_what_it_lacks_is_refused(change, sentence, plan_tree, write_plan):
    change(plan_tree)
    with pytest.raises(ValueError, match=sentence):
        load_plan(write_plan(plan_tree))


def test_runs_come_after_those_that_they_start_from(plan_tree, write_plan):
    plan_tree["seeds"] = [3]
    plan = load_plan(write_plan(plan_tree))
    assert plan.runs_of("table5") == [("both", 3), ("tuned", 0)]
    assert plan.runs_of("claims") == [("both", 3), ("alignment", 3), ("alignment-long", 3)]


def test_what_others_start_from_is_trained_whatever_seeds_a_row_shows(plan_tree, write_plan):
    rows = [{"label": "1", "variant": "both", "seeds": [1]}, {"label": "2", "variant": "tuned"}]
    plan_tree["tables"]["table8"]["rows"] = rows
    assert load_plan(write_plan(plan_tree)).runs_of("table8") == [("both", 1), ("both", 0), ("tuned", 0)]


def test_all_names_that_do_not_exist_are_reported_at_once(plan_tree, write_plan):
    plan_tree["claims"]["P1"].update(a="x", b="z")
    with pytest.raises(ValueError, match=r"variant `x`(.|\n)*variant `z`"):
        load_plan(write_plan(plan_tree))


def test_a_variant_that_needs_itself_is_refused(plan_tree, write_plan):
    plan_tree["variants"]["both"]["start"] = "tuned"
    with pytest.raises(ValueError, match=r"`variants\.(both|tuned)` needs itself"):
        load_plan(write_plan(plan_tree))


def test_a_target_needs_the_seeds_of_its_rows_alone(plan_tree, write_plan):
    plan_tree["tables"]["table8"]["rows"] = [{"label": "1", "variant": "both", "seeds": [1]}]
    plan = load_plan(write_plan(plan_tree))
    assert plan.runs_of("table8") == [("both", 1)]
    assert plan.runs_of("controls") == [("both", 0)]
    assert plan.runs_of("table5") == [("both", 0), ("tuned", 0)]
    assert plan.runs_of("table4") == [(name, seed) for name in ("alignment", "both") for seed in (0, 1)]


def test_an_unknown_scale_is_refused():
    with pytest.raises(FileNotFoundError, match=r"There is no scale `huge`\. Expected one of .*emoji"):
        load_plan("huge")


BOTH_ARMS = {  # claim of the scale `emoji` -> the keys in which its arms at equal steps may differ
    "P1": {"objective.task"}, "P2": {"objective.task"}, "P4": {"text.is_trained"}, "P7": set(),
    "P5": {"optimizer.new_learning_rate"}, "P6": {"query_stream.gamma"}, "P8": {"query_stream.text_chain"},
    "U1": {"objective.generation_weight"}, "U2": {"objective.contrastive_weight", "evaluation.keep_best"},
    "U3": {"objective.consistency_weight"}, "U4": {"objective.consistency_weight", "objective.consistency"},
    "E1": {"objective.task"}, "E2": {"objective.task"},
    **{name: set() for name in ("E3", "E4", "E5", "E6", "E7", "E12")},
    "E8": {"query_stream.fusion"}, "E9": {"query_stream.fusion"}, "E11": {"query_stream.fusion"},
}  # fmt: skip
RIVALS = {"P3", "E10"}  # of another kind, so nearly all keys differ


def keys_of(tree, prefix=""):
    """The values of a recipe by dotted key."""
    found = {}
    for key, value in tree.items():
        found |= keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_arms_of_a_claim_differ_in_what_it_is_about_and_its_learning_rate_alone(tmp_path):
    plan = load_plan("emoji")
    assert plan.claims.keys() == BOTH_ARMS.keys() | RIVALS
    for name, claim in plan.claims.items():
        runs = [ModelRun(plan, side, 0, tmp_path, tmp_path / "runs") for side in (claim.a, claim.b)]
        if name in RIVALS:
            of_a, of_b = (run._load(()) for run in runs)
            assert (of_a.views, of_a.text, of_a.data, of_a.loop) == (of_b.views, of_b.text, of_b.data, of_b.loop)
            continue
        a, b = (keys_of(run._load(()).model_dump(mode="json")) for run in runs)
        differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        chosen = (
            {"optimizer.learning_rate", "optimizer.new_learning_rate"}
            if name in {"P1", "P2", "U1", "U2", "E1"}
            else set()
        )
        assert differing - chosen <= BOTH_ARMS[name], name
        assert BOTH_ARMS[name] <= differing, name


def test_an_arm_of_unidiff_with_other_images_differs_in_their_number_alone(tmp_path):
    plan = load_plan("emoji")

    def settings(name):
        return keys_of(ModelRun(plan, name, 0, tmp_path, tmp_path / "runs")._load(()).model_dump(mode="json"))

    of_forms = [settings(name) for name in ("uni-projected", "uni-relational")]
    for number in (500, 2000):
        for name, same in (("contrastive", [settings("uni-contrastive")]), ("both", [settings("uni-both")]),
                           ("consistency", of_forms)):  # fmt: skip
            assert settings(f"uni-{name}-{number}") in [each | {"data.num_images": number} for each in same], name


def test_consistency_on_clothing_is_that_of_emoji(tmp_path):
    of_emoji, of_clothing = (
        ModelRun(load_plan(scale), arm, 0, tmp_path, tmp_path / "runs")._load(())
        for scale, arm in (("emoji", "uni-consistency-500"), ("photos", "uni-consistency"))
    )
    assert of_clothing.objective == of_emoji.objective
    assert of_clothing.optimizer.learning_rate == of_emoji.optimizer.learning_rate


def test_an_arm_of_equal_flop_is_that_of_equal_steps_but_for_its_length(tmp_path):
    plan = load_plan("emoji")
    pairs = [(claim.a, claim.a_flop) for claim in plan.claims.values()]
    pairs += [(claim.b, claim.b_flop) for claim in plan.claims.values()]
    longer = [(short, long) for short, long in pairs if long is not None]
    assert len(longer) == 7
    for short, long in longer:
        own, other = (ModelRun(plan, side, 0, tmp_path, tmp_path / "runs")._load(()) for side in (short, long))
        assert own == other
        assert plan.variants[long].same_flop_as is not None


def test_the_images_of_the_emoji_claims_are_those_of_the_protocol():
    plan = load_plan("emoji")
    of_naming = [claim for claim in plan.claims.values() if claim.metric != "kd"]
    sets = [plan.naming[name] for claim in of_naming for name in plan.naming_of(claim)]
    sets += [plan.generation[plan.generation_of(claim)] for claim in plan.claims.values() if claim.metric == "kd"]
    assert all("is_representative=True" in each.where and each.split == "test" for each in sets)
    of_all_styles = [each for each in sets if "style=outlined" not in each.where]
    assert of_all_styles
    assert all(each.unit == "label" for each in of_all_styles)


@pytest.mark.parametrize("scale", plan_names())
def test_every_recipe_of_a_bundled_plan_can_be_read(scale, tmp_path):
    plan = load_plan(scale)
    for variant in plan.variants:
        run = ModelRun(plan, variant, 0, tmp_path, tmp_path / "runs")
        assert run._load(()).loop.num_steps > 0
