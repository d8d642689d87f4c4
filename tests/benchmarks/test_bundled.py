"""benchmarks/bundled.py: which rows each subset has, and what a control's rows say."""

import json

import pytest
from PIL import Image

from toys.by_path import load_by_path
from toys.models import toy_pipeline

bundled = load_by_path("benchmarks/bundled.py")
CONTROLS = ("shuffled_images", "zeroed_images", "nearest_thumbnail")  # without EfficientNet-Lite0, an extra


@pytest.fixture
def data(tmp_path):
    """Four splits of twelve concepts in two styles; the last concept of a split is a flag."""
    for number, split in enumerate(("train", "validation", "composition", "test")):
        folder = tmp_path / split
        folder.mkdir()
        lines = []
        for i in range(24):
            style, concept = ("flat", "outlined")[i % 2], chr(97 + i // 2)
            concept = "the flag of Chad" if i // 2 == 11 else concept
            Image.new("RGB", (16, 16), (10 * i, 60 * number, 200)).save(folder / f"{i}.png")
            line = {"file_name": f"{i}.png", "captions": [f"{concept} {style}"], "style": style}
            lines.append(json.dumps({**line, "label": concept, "is_representative": True}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_subset_is_measured_with_its_controls(data, tmp_path, encoder_folder, monkeypatch):
    monkeypatch.setattr(bundled, "open_model", lambda model: toy_pipeline(encoder_folder))
    monkeypatch.setattr(bundled, "EvaluationOptions", _without_efflite0(bundled.EvaluationOptions))
    monkeypatch.setattr(bundled, "STYLES", ("outlined",))
    subsets = {name: bundled.SUBSETS[name] for name in ("training", "unseen", "unseen without flags")}
    without_classes = {"classification", "collapse"}
    subsets = {
        name: (split, where, tuple(each for each in tasks if each not in without_classes))
        for name, (split, where, tasks) in subsets.items()
    }
    monkeypatch.setattr(bundled, "SUBSETS", subsets)
    rows = bundled.measure(str(tmp_path), data, tmp_path / "records")
    chosen = [row for row in rows if row["measure"] == "text_retrieval_recall@10"]
    assert {(row["subset"], row["control"], row["n"]) for row in chosen} == {
        ("training", "none", 12),
        ("unseen without flags", "none", 11),
        *(("unseen", control, 12) for control in (*CONTROLS, "none")),
    }
    assert {row["task"] for row in rows} == {"zeroshot_retrieval", "controls"}
    assert {row["split"] for row in rows} == {"train", "test"}


def _without_efflite0(options):
    def make(**settings):
        return options(**{"controls": CONTROLS, **settings})

    return make
