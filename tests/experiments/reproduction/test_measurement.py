"""measurement.py and columns.py: metrics are those of the tasks, are kept with their items, and measured once."""

import pytest
import torch

from palindiff.evaluation.diffusion_classifier import STAGES, calls_per_image
from palindiff.experiments.reproduction.columns import column_row
from palindiff.experiments.reproduction.kernel_distance import KernelDistance
from palindiff.experiments.reproduction.measurement import PUBLISHED_COST, Measurement, OpenModel, joined, named_data
from palindiff.experiments.reproduction.plan_sections import ClassifierPlan, ColumnPlan, DataPlan, NamingPlan
from palindiff.experiments.reproduction.units import units_of_captions, units_of_images
from palindiff.inference.embedder import PipelineEmbedder
from toys.models import toy_pipeline
from toys.text_encoders import write_text_encoders

RECALL = ("text_retrieval_recall@3", "image_retrieval_recall@3")


@pytest.fixture
def data():
    return DataPlan(
        path="{data}/images", split="validation", tasks=("retrieval", "classification"), templates=("a {}",),
        retrieval_ks=(1, 3), recall_k=3,
    )  # fmt: skip


@pytest.fixture
def opened(tmp_path, parts):
    write_text_encoders(tmp_path)
    model = PipelineEmbedder(toy_pipeline(tmp_path, query_scale="sqrt_d"))
    return OpenModel(model, tmp_path, parts)


def test_every_metric_that_the_plan_names_is_measured_and_its_items_have_its_mean(opened, data):
    (found,) = opened.naming("images", data, [NamingPlan()])
    assert {row["metric"] for row in found.rows} == data.metrics - {"acc5"}  # of fewer than five classes
    assert {*RECALL, "acc1"} <= found.items.keys()
    for name, items in found.items.items():
        assert float(items.double().mean()) == pytest.approx(found.value(name))


def test_what_was_measured_is_read_again_and_a_new_setting_is_measured(opened, data, monkeypatch):
    first = opened.naming("images", data, [NamingPlan()])
    embedded = []
    embed = OpenModel._embed
    monkeypatch.setattr(OpenModel, "_embed", lambda self, *given: embedded.append(given[1]) or embed(self, *given))
    again = opened.naming("images", data, [NamingPlan(), NamingPlan(num_inference_steps=2)])
    assert [len(settings) for settings in embedded] == [1]
    assert again[0].rows == first[0].rows
    assert all(torch.equal(first[0].items[name], each) for name, each in again[0].items.items())


def test_other_templates_are_another_measurement(opened, data):
    opened.naming("images", data, [NamingPlan()])
    opened.naming("images", data.model_copy(update={"templates": ("{}",)}), [NamingPlan()])
    assert len(list(opened.folder.glob("measured/*.json"))) == 2


def test_leading_spacing_starts_elsewhere_and_the_model_stays_as_it_was(opened, data):
    one = NamingPlan(num_inference_steps=1)
    leading = NamingPlan(num_inference_steps=1, timestep_spacing="leading")
    rows = named_data("images", data, opened.root).open()
    own = opened.pipeline.query_scheduler
    trailing_first, of_leading = (opened._embed(rows, [each])[0] for each in (one, leading))
    assert opened.pipeline.query_scheduler is own
    (trailing_again,) = opened._embed(rows, [one])
    assert torch.equal(trailing_first, trailing_again)
    assert not torch.allclose(trailing_first, of_leading, atol=1e-4)


def test_the_diffusion_classifier_and_controls_are_rows_with_their_chance(opened, data):
    plan = ClassifierPlan(num_images=3, stages=((2, 2), (3, 1)))
    rows = {row["metric"]: row for row in opened.diffusion_classifier("images", data, plan).rows}
    accuracy, published = rows["acc1"], rows[PUBLISHED_COST]
    num_classes = round(1 / accuracy["chance"])
    calls = [calls_per_image(num_classes, stages) for stages in (STAGES, plan.stages)]
    assert published["value"] / accuracy["tflop_per_image"] == pytest.approx(calls[0] / calls[1])
    assert accuracy["n"] == 3
    assert accuracy["chance"] > 0
    column = ColumnPlan(title="accuracy", metrics=("acc1",), data=("images",))
    measured = opened.diffusion_classifier("images", data, plan)
    own = column_row(column, {"images": [measured]}, None)
    assert (own["ci_low"], own["ci_high"]) == (accuracy["ci_low"], accuracy["ci_high"]) != (None, None)
    assert column_row(column, {"images": [measured] * 2}, None)["ci_low"] is None  # of two seeds nothing is known
    metrics = {row["metric"] for row in opened.controls("images", data)}
    assert metrics >= {f"shuffled_images_{name}" for name in RECALL}
    assert metrics >= {f"nearest_thumbnail_{name}" for name in ("acc1", *RECALL)}
    assert any("cosine" in name for name in metrics)  # of chain_use


def test_units_are_images_with_their_captions_or_labels_and_are_kept_on_disk(opened, data):
    texts = [(("a", "b"), "x"), (("b",), "y"), (("c",), "x")]
    captions = [each for each, _ in texts]
    of_labels, of_images = units_of_images(texts, "label"), units_of_images(texts, "image")
    assert (of_labels.tolist(), of_images.tolist()) == ([0, 1, 0], [0, 1, 2])
    assert units_of_captions(captions, of_labels).tolist() == [0, 0, 0]  # of "a", "b" and "c"
    assert units_of_captions(captions, of_images).tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match=r"Image 1 has no label, and `unit` is `label`"):
        units_of_images([(("a",), "x"), (("b",), None)], "label")
    plan = DataPlan(**data.model_dump() | {"unit": "label"})
    (first,), (again,) = (opened.naming("images", plan, [NamingPlan()]) for _ in range(2))
    for name, items in first.items.items():
        assert first.units[name].shape == items.shape[:1]
        assert torch.equal(first.units[name], again.units[name])
    assert first.units.keys() == first.items.keys() == again.items.keys()


def seeds(*hits, metric="a"):
    return [
        Measurement(
            [{"metric": metric, "value": sum(each) / len(each), "n": len(each), "chance": 0.1},
             {"metric": "kd", "value": sum(each), "n": 4}],
            {metric: torch.tensor(each).float()}, {metric: torch.arange(len(each))},
        )
        for each in hits
    ]  # fmt: skip


def test_a_column_is_the_mean_over_seeds_with_an_interval_of_items_or_the_ends():
    measured = {"x": seeds([1, 0, 1, 1], [0, 0, 1, 0])}
    recall = column_row(ColumnPlan(title="t", metrics=("a",), data=("x",)), measured, None)
    assert recall["value"] == 0.5
    assert (recall["lowest"], recall["highest"], recall["num_seeds"]) == (0.25, 0.75, 2)
    assert recall["ci_low"] <= 0.25
    assert recall["chance"] == pytest.approx(0.1)
    kd = column_row(ColumnPlan(title="t", metrics=("kd",)), measured, "x")
    assert (kd["value"], kd["ci_low"], kd["chance"]) == (2.0, None, None)


def test_a_column_over_several_data_sets_is_the_mean_of_their_means():
    measured = {"x": seeds([1, 1]), "y": seeds([0, 0, 0, 0])}
    both = column_row(ColumnPlan(title="t", metrics=("a",), data=("x", "y")), measured, None)
    assert (both["value"], both["ci_low"], both["ci_high"]) == (0.5, 0.5, 0.5)  # items are drawn within their set


def test_data_sets_share_no_unit_whatever_their_numbers():
    """Two sets with the same numbers of units, and one of them with larger numbers than it has items."""
    one, other = seeds([1, 0, 1, 0]), seeds([0, 1, 0, 1])
    other[0].units["a"] = torch.tensor([0, 1, 2, 9])
    found = column_row(ColumnPlan(title="t", metrics=("a",), data=("x", "y")), {"x": one, "y": other}, None)
    same = column_row(
        ColumnPlan(title="t", metrics=("a",), data=("x", "y")), {"x": one, "y": seeds([0, 1, 0, 1])}, None
    )
    assert (found["ci_low"], found["ci_high"]) == (same["ci_low"], same["ci_high"])
    assert found["ci_low"] < 0.5 < found["ci_high"]  # drawn together, one set would make up for the other


def test_the_kernel_distance_of_a_column_is_that_of_all_images_with_an_interval():
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(7, 5, generator=draw)
    measured = [
        Measurement(
            [{"metric": "kd_efflite0", "value": 99.0, "n": 6}],  # a mean over random subsets
            {"generated": torch.randn(6, 5, generator=draw) + seed, "real": real},
            {"generated": torch.arange(6)},
        )
        for seed in (0, 1)
    ]
    found = column_row(ColumnPlan(title="t", metrics=("kd_efflite0",)), {"x": measured}, "x")
    by_seed = [KernelDistance.of(each.items).of_all() for each in measured]
    assert found["value"] == pytest.approx(sum(by_seed) / 2)
    assert (found["lowest"], found["highest"]) == (min(by_seed), max(by_seed))
    assert found["ci_low"] < found["value"] < found["ci_high"]


def test_joined_data_sets_share_no_unit_and_keep_their_items():
    one, other = seeds([1, 0])[0], seeds([0, 1, 1], metric="b")[0]
    found = joined({"x": one, "y": other}, {"x": ["a"], "y": ["b"]})
    assert {name: each.tolist() for name, each in found.items.items()} == {"a of x": [1, 0], "b of y": [0, 1, 1]}
    assert not set(found.units["a of x"].tolist()) & set(found.units["b of y"].tolist())


@pytest.mark.parametrize(
    "column", [ColumnPlan(title="t", metrics=("b",), data=("x",)), ColumnPlan(title="t", metrics=("kd",))]
)
def test_a_column_of_what_was_not_measured_is_left_out(column):
    assert column_row(column, {"x": seeds([1])}, None) is None
