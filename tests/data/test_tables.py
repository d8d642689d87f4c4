"""tables.py: parquet files and data sets of the Hub, their columns found where they are plain, images undecoded."""

import re

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from palindiff.data.images import decode_image
from palindiff.data.index import check_rows
from palindiff.data.tables import find_columns, index_table, load_hub, load_parquet
from toys.sources import square

IMAGES = [square("red"), square("blue")]
TEMPLATE = "a photo of a {c}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_parquet(path, columns, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def rows_of(table, image=None, caption=None):
    columns = find_columns(table.features, image, caption, "the table")
    index, images = index_table(table, columns, TEMPLATE)
    return index, check_rows(index, images, "the table", "skip")


@pytest.mark.parametrize("kind", ["image", "binary", "struct"])
def test_images_are_read_whatever_their_column_is(kind, tmp_path):
    features = {
        "image": Image(),
        "binary": Value("binary"),
        "struct": {"bytes": Value("binary"), "path": Value("string")},
    }
    cells = IMAGES if kind == "binary" else [{"bytes": data, "path": "x.png"} for data in IMAGES]
    typed = Features({"pixels": features[kind], "caption": Value("string")})
    file = write_parquet(tmp_path / "a.parquet", {"pixels": cells, "caption": ["red", "blue"]}, typed)
    _, rows = rows_of(load_parquet([file]))
    assert [row.source.data for row in rows] == IMAGES  # as they are, undecoded
    assert decode_image(rows[1].source).getpixel((0, 0)) == (0, 0, 255)
    assert [row.captions for row in rows] == [("red",), ("blue",)]
    assert rows[0].source.name == ("row 0" if kind == "binary" else "x.png")


def test_several_captions_and_further_columns_are_read(tmp_path):
    columns = {"image": IMAGES, "text": [["red", "rot"], ["blue"]], "price": [1.5, None], "vector": [[1.0], [2.0]]}
    _, rows = rows_of(load_parquet([write_parquet(tmp_path / "a.parquet", columns)]))
    assert [row.captions for row in rows] == [("red", "rot"), ("blue",)]
    assert [row.fields for row in rows] == [{"price": "1.5"}, {}]


def test_class_names_give_label_and_caption_and_an_unpublished_class_none():
    features = Features({"image": Value("binary"), "label": ClassLabel(names=["cat", "dog_house"])})
    index, rows = rows_of(Dataset.from_dict({"image": IMAGES, "label": [1, -1]}, features=features))
    assert (rows[0].label, rows[0].captions) == ("dog_house", ("a photo of a dog house",))
    assert index["fault"][:] == [None, "no caption"]


def test_files_with_pattern_characters_in_their_name_are_read(tmp_path):
    file = write_parquet(tmp_path / "set [1]*" / "a.parquet", {"image": IMAGES, "text": ["red", "blue"]})
    assert len(load_parquet([file])) == 2


@pytest.mark.parametrize(
    ("columns", "named", "sentence"),
    [
        (("image", "mask", "text"), {}, "has 2 columns that could hold images. Expected one of image, mask. Set `i"),
        (("text",), {}, "has no column that could hold images. Expected one besides text. Add the images"),
        (("image",), {}, "has no column that could hold captions. Expected one besides image. Add the captions"),
        (("image", "title", "alt"), {}, "has 2 columns that could hold captions. Expected one of title, alt. Set"),
        (("image", "text"), {"image": "img"}, "has no column `img`. Expected one of image. Set `image_column`"),
        (("image", "text"), {"image": "text"}, "has no images in its column `text`. Expected one of image"),
        (("image", "text"), {"caption": "image"}, "has no captions in its column `image`. Expected one of text"),
    ],
)
def test_ambiguous_columns_are_refused_with_the_option_to_set(columns, named, sentence):
    features = {name: Value("binary" if name in ("image", "mask") else "string") for name in columns}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        find_columns(Features(features), named.get("image"), named.get("caption"), "the table")


def test_usual_name_wins_over_other_texts_and_a_named_column_over_both():
    features = Features({"image": Image(), "title": Value("string"), "caption": List(Value("string"))})
    assert find_columns(features, None, None, "the table").caption == "caption"
    assert find_columns(features, None, "title", "the table").caption == "title"


@pytest.mark.parametrize(
    ("cell", "text", "fault"),
    [
        ({"bytes": None, "path": None}, "red", "no image"),
        ({"bytes": None, "path": "a.png"}, "red", "no image"),
        ({"bytes": None, "path": "/nowhere/a.png"}, "red", "image cannot be opened"),
        ({"bytes": b"", "path": None}, "red", "empty image file"),
        ({"bytes": square(), "path": None}, " ", "empty caption"),
        ({"bytes": square(), "path": None}, None, "no caption"),
    ],
)
def test_bad_rows_are_reported(cell, text, fault):
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "text": Value("string")})
    good = {"bytes": square(), "path": None}
    index, _ = rows_of(Dataset.from_dict({"image": [good, cell], "text": ["red", text]}, features=features))
    assert (index["fault"][:], index["place"][1]) == ([None, fault], "row 1")


def test_damaged_parquet_is_refused_by_name(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {"image": IMAGES, "text": ["red", "blue"]})
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.parquet` .* cannot be read .*Parquet.*Expected complete parquet files"):
        load_parquet([file])


def write_hub_folder(root):
    """What a data set looks like on the Hub: two configurations, one of them with two splits."""
    columns = {"image": IMAGES, "text": ["red", "blue"]}
    for name in ("plain/train", "plain/test", "toned/train"):
        write_parquet(root / f"{name}-00000-of-00001.parquet", columns)
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("plain", "toned"))
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(root)


def test_data_set_of_the_hub_is_loaded_by_subset_and_split(tmp_path):
    name = write_hub_folder(tmp_path / "hub")
    _, rows = rows_of(load_hub(name, "plain", "test"))
    assert [row.captions for row in rows] == [("red",), ("blue",)]
    with pytest.raises(ValueError, match=r"hub` cannot be loaded: .*[Cc]onfig.*toned.* Expected"):
        load_hub(name, None, "train")
    with pytest.raises(ValueError, match=r'hub` cannot be loaded: Unknown split "no".*train.* Expected'):
        load_hub(name, "toned", "no")


def test_images_that_datasets_keeps_as_files_are_read(tmp_path):
    (tmp_path / "hub").mkdir()
    for colour, data in zip(("red", "blue"), IMAGES, strict=True):
        (tmp_path / "hub" / f"{colour}.png").write_bytes(data)
    (tmp_path / "hub" / "metadata.csv").write_text("file_name,text\nred.png,a red square\nblue.png,a blue square\n")
    _, rows = rows_of(load_hub(str(tmp_path / "hub"), None, "train"))
    assert [(row.source.name, row.captions) for row in rows] == [
        ("red.png", ("a red square",)),
        ("blue.png", ("a blue square",)),
    ]
    assert decode_image(rows[1].source).getpixel((0, 0)) == (0, 0, 255)


def test_saved_data_set_is_loaded_with_and_without_splits(tmp_path):
    table = Dataset.from_dict({"image": IMAGES, "text": ["red", "blue"]})
    table.save_to_disk(tmp_path / "one")
    DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    assert rows_of(load_hub(str(tmp_path / "one"), None, "train"))[1][1].captions == ("blue",)
    assert rows_of(load_hub(str(tmp_path / "two"), None, "test"))[1][0].captions == ("blue",)
    with pytest.raises(ValueError, match=r"one` has no split `test`\. Expected one of train"):
        load_hub(str(tmp_path / "one"), None, "test")


def test_hub_out_of_reach_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError) as refused:
        load_hub("nobody/no_images", None, "train")
    assert str(refused.value).startswith("`nobody/no_images` does not exist locally, and the Hub cannot be reached.")
    assert "\n" not in str(refused.value)


def test_a_parquet_file_without_rows_is_passed_over(tmp_path):
    full = write_parquet(tmp_path / "a.parquet", {"image": IMAGES, "caption": ["red", "blue"]})
    empty = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({}), empty)
    _, rows = rows_of(load_parquet([empty, full]))
    assert [row.captions for row in rows] == [("red",), ("blue",)]
    with pytest.raises(ValueError, match=r"b\.parquet` and the parquet files beside it have no rows"):
        load_parquet([empty])


def test_a_number_without_a_name_is_no_caption(tmp_path):
    table = load_parquet([write_parquet(tmp_path / "a.parquet", {"image": IMAGES, "label": [0, 1]})])
    columns = find_columns(table.features, None, None, "the table")
    index, _ = index_table(table, columns, TEMPLATE)
    assert index["fault"][:] == ["no caption"] * 2
    assert index["found"][0] == "class 0 has no name: `label` holds numbers, without names"
