"""named_data.py: another split of a data set, with its conditions on rows or without."""

import pytest

from palindiff.data.sources import DataConfig
from palindiff.evaluation.named_data import NamedData
from toys.recipe import write_split


@pytest.mark.parametrize(("filters_training", "number"), [(True, 2), (False, 4)])
def test_conditions_hold_for_another_split_unless_it_is_asked_for_whole(filters_training, number, tmp_path):
    rows = [{"file_name": f"{i}.png", "caption": f"a {i}", "label": "ab"[i % 2]} for i in range(4)]
    for split in ("train", "test"):
        write_split(tmp_path / split, rows)
    config = DataConfig(path=str(tmp_path), split="test", where=("label=a",))
    data = NamedData("images", config, filters_training=filters_training)
    assert len(data.open()) == 2
    assert len(data.of_split("train").open()) == number
    assert data.of_split("train").name == "images, train"
