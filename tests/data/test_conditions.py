"""conditions.py: parts of a set by the columns of its rows."""

import json

import pytest
from PIL import Image

from palindiff.data.conditions import Condition, select_by_hash, select_where
from palindiff.data.sources import DataConfig, open_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    lines = []
    for i, (label, style) in enumerate([("cat", "flat"), ("flag: A", "flat"), ("flag: B", "outlined"), (None, None)]):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(folder / f"{i}.png")
        line = {"file_name": f"{i}.png", "captions": [f"caption {i}"], "label": label, "style": style}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return open_images(DataConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([], [0, 1, 2, 3]),
        (["style=flat"], [0, 1]),
        (["label!=flag*"], [0, 3]),
        (["label=flag*", "style!=flat"], [2]),
        (["label="], [3]),
        (["caption!=*2", "image_path=?.png"], [0, 1, 3]),
    ],
)
def test_rows_that_meet_all_conditions_are_kept(texts, kept, rows):
    found = select_where(rows, texts)
    assert [each.captions for each in found] == [(f"caption {i}",) for i in kept]
    assert [str(Condition.parse(text)) for text in texts] == texts
    assert (found.fingerprint == rows.fingerprint) == (not texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flat", "has no key"),
        ("=flat", "has no key"),
        ("colour=red", "has a column `colour`. Expected one of caption, image_path, label, style"),
        ("style=none", "meets style=none"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(text, message, rows):
    with pytest.raises(ValueError, match=message):
        select_where(rows, [text])


def test_rows_chosen_by_hash_are_a_part_of_more_rows_and_keep_their_order(rows):
    names = [each["image_path"] for each in rows.columns()]
    chosen = [[each["image_path"] for each in select_by_hash(rows, number).columns()] for number in (1, 2, len(rows))]
    assert [len(each) for each in chosen] == [1, 2, len(rows)]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])
    assert chosen[1] == [name for name in names if name in chosen[1]]
    assert chosen[2] == names
    assert select_by_hash(rows, 100) is rows


def test_a_recipe_s_data_are_chosen_too(rows, folder):
    config = DataConfig(path=str(folder), where=("style = flat",))
    assert config.where == ("style=flat",)
    assert [each["style"] for each in open_images(config).columns()] == ["flat", "flat"]
    with pytest.raises(ValueError, match="has no key"):
        DataConfig(path=str(folder), where=("flat",))
