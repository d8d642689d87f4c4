"""benchmarks/bundled.py: which rows each subset has, and what a control's rows say."""

import json

import pytest
from PIL import Image

from toys.by_path import load_by_path
from toys.models import toy_pipeline

bundled = load_by_path("benchmarks/bundled.py")


@pytest.fixture
def data(tmp_path):
    """Four splits of twelve concepts in two styles; the last concept of a split is a flag."""
    for number, split in enumerate(("train", "validation", "composition", "test")):
        folder = tmp_path / split
        folder.mkdir()
        lines = []
        for i in range(24):
            style, concept = ("flat", "outlined")[i % 2], f"thing {chr(97 + i // 2)}"
            concept = "the flag of Chad" if i // 2 == 11 else concept
            Image.new("RGB", (16, 16), (10 * i, 60 * number, 200)).save(folder / f"{i}.png")
            line = {"file_name": f"{i}.png", "captions": [f"{style} {concept}"], "style": style}
            lines.append(json.dumps({**line, "label": concept, "is_representative": True}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_every_subset_is_measured_by_every_task_and_control(data, tmp_path, encoder_folder, monkeypatch):
    monkeypatch.setattr(bundled, "open_model", lambda model: toy_pipeline(encoder_folder))
    monkeypatch.setattr(bundled, "EvaluationOptions", _without_efflite0(bundled.EvaluationOptions))
    rows = bundled.measure(str(tmp_path), data, tmp_path / "records")
    chosen = [row for row in rows if row["measure"] == "text_retrieval_recall@10"]
    subsets = {row["subset"] for row in chosen}
    assert subsets == set(bundled.SUBSETS)
    number = {row["subset"]: row["n"] for row in chosen if row["control"] == "none"}
    assert number == {name: 11 if name == "unseen without flags" else 12 for name in subsets}
    controls = {(row["subset"], row["control"]) for row in chosen}
    assert ("unseen", "nearest_thumbnail") in controls
    assert ("training", "shuffled_images") in controls
    assert ("training", "nearest_thumbnail") not in controls
    assert {row["task"] for row in rows if row["subset"] == "unseen"} == {
        "zeroshot_classification", "zeroshot_retrieval", "chain_use", "collapse", "controls"
    }  # fmt: skip


def _without_efflite0(options):
    def make(**settings):
        return options(**{"controls": ("shuffled_images", "zeroed_images", "nearest_thumbnail"), **settings})

    return make
