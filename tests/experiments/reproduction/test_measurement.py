"""measurement.py: metrics equal those of the tasks, are kept with their items, and are not measured twice."""

import pytest
import torch

from palindiff.experiments.reproduction import measurement
from palindiff.experiments.reproduction.measurement import Measurement, measure_naming, summarize
from palindiff.experiments.reproduction.plan import DataPlan, NamingPlan
from palindiff.inference.embedder import PipelineEmbedder
from toys.models import toy_pipeline
from toys.text_encoders import write_text_encoders


@pytest.fixture
def data():
    return DataPlan(
        path="{data}/images", split="validation", tasks=("retrieval", "classification"), templates=("a {}",),
        retrieval_ks=(1, 3), recall_k=3,
    )  # fmt: skip


@pytest.fixture
def model(tmp_path):
    write_text_encoders(tmp_path)
    return PipelineEmbedder(toy_pipeline(tmp_path, query_scale="sqrt_d"))


def by_metric(measured):
    return {row["metric"]: row["value"] for row in measured.rows}


def test_recall_is_the_mean_of_both_directions_and_its_items_are_the_hits(model, data, parts, tmp_path):
    (found,) = measure_naming(model, data, parts, [NamingPlan()], tmp_path)
    values = by_metric(found)
    both = (values["text_retrieval_recall@3"] + values["image_retrieval_recall@3"]) / 2
    assert values["recall"] == pytest.approx(both)
    hits, groups = found.items["recall"], found.items["recall_groups"]
    assert (hits[groups == 0].mean() + hits[groups == 1].mean()) / 2 == pytest.approx(both)
    assert found.items["acc1"].mean() == pytest.approx(values["acc1"])


def test_what_was_measured_is_read_again_and_a_new_setting_is_measured(model, data, parts, tmp_path, monkeypatch):
    first = measure_naming(model, data, parts, [NamingPlan()], tmp_path)
    embedded = []
    embed = measurement._embed
    monkeypatch.setattr(measurement, "_embed", lambda *given: embedded.append(given[2]) or embed(*given))
    again = measure_naming(model, data, parts, [NamingPlan(), NamingPlan(num_inference_steps=2)], tmp_path)
    assert [len(settings) for settings in embedded] == [1]
    assert again[0].rows == first[0].rows
    assert all(torch.equal(first[0].items[name], each) for name, each in again[0].items.items())


def test_leading_spacing_starts_elsewhere_and_trailing_is_as_before(model, data, parts, tmp_path):
    one = NamingPlan(num_inference_steps=1)
    leading = NamingPlan(num_inference_steps=1, timestep_spacing="leading")
    rows = measurement.open_rows(data, parts)
    trailing_first, of_leading = (measurement._embed(model, rows, [each])[0] for each in (one, leading))
    (trailing_again,) = measurement._embed(model, rows, [one])
    assert torch.equal(trailing_first, trailing_again)
    assert not torch.allclose(trailing_first, of_leading, atol=1e-4)


def seeds(*hits):
    return [
        Measurement(
            [{"metric": "recall", "value": sum(each) / len(each), "n": len(each), "chance": 0.1},
             {"metric": "kd", "value": sum(each), "n": 4}],
            {"recall": torch.tensor(each).float(), "recall_groups": torch.zeros(len(each), dtype=torch.int64)},
        )
        for each in hits
    ]  # fmt: skip


def test_the_mean_over_seeds_has_an_interval_if_there_are_items_and_the_ends_in_any_case():
    recall, kd = summarize(seeds([1, 0, 1, 1], [0, 0, 1, 0]))
    assert recall["value"] == 0.5
    assert (recall["lowest"], recall["highest"], recall["num_seeds"]) == (0.25, 0.75, 2)
    assert recall["ci_low"] <= 0.25
    assert kd["ci_low"] is None
    assert kd["value"] == 2.0
