"""metadata.py: rows of JSON lines, CSV, parquet and COCO's annotations, and the folders and files that hold them."""

import json

import datasets
import pytest
from pydantic import ValidationError

from palindiff.data import entries
from palindiff.data.folder import SplitFolder, scan_folder
from palindiff.data.metadata import read_records
from palindiff.data.sources import DataConfig, find_source, open_images
from toys.sources import square, write_images


def write_table(path, rows):
    """Rows in the format of a file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("\n".join(sign.join(f'"{value}"' for value in line) for line in lines))
    return path


def captions_of(path, **settings):
    return {row.source.name: row.captions for row in open_images(DataConfig(path=str(path), **settings))}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_metadata_files_of_every_format_give_the_same_rows(suffix, tmp_path):
    root = write_images(tmp_path, "a.png", "sub/b.png")
    rows = [
        {"file_name": "a.png", "text": "one, two", "label": "x"},
        {"file_name": "sub/b.png", "text": "ä", "label": "y"},
    ]
    write_table(root / f"metadata{suffix}", rows)
    found = list(open_images(DataConfig(path=str(root))))
    assert [(row.source.name, row.captions, row.label) for row in found] == [
        ("a.png", ("one, two",), "x"),
        ("sub/b.png", ("ä",), "y"),
    ]


def test_the_nearest_metadata_file_counts(tmp_path):
    root = write_images(tmp_path, "a.png", "cats/b.png", "cats/c.png", "dogs/old/d.png")
    write_table(
        root / "metadata.jsonl", [{"file_name": "a.png", "text": "a"}, {"file_name": "cats/b.png", "text": "far"}]
    )
    write_table(
        root / "cats" / "metadata.csv", [{"file_name": "b.png", "text": "near"}, {"file_name": "c.png", "text": "c"}]
    )
    write_table(root / "dogs" / "metadata.parquet", [{"file_name": "old/d.png", "text": "d"}])
    assert captions_of(root) == {
        "a.png": ("a",),
        "cats/b.png": ("near",),
        "cats/c.png": ("c",),
        "dogs/old/d.png": ("d",),
    }
    write_images(root, "cats/e.png")
    with pytest.raises(ValueError, match=r"`cats/e\.png`: image without a line in cats/metadata\.csv"):
        captions_of(root)


def test_folders_with_their_own_metadata_alone_are_no_classes(tmp_path):
    for name in ("cats", "dogs"):
        write_images(tmp_path, f"{name}/1.png")
        write_table(tmp_path / name / "metadata.jsonl", [{"file_name": "1.png", "text": f"some {name}"}])
    assert captions_of(tmp_path) == {"cats/1.png": ("some cats",), "dogs/1.png": ("some dogs",)}


def test_metadata_of_another_split_is_not_read(tmp_path):
    write_images(tmp_path, "train/a/1.png", "test/2.png", "3.png")
    write_table(tmp_path / "train" / "a" / "metadata.csv", [{"file_name": "1.png", "text": "one"}])
    write_table(tmp_path / "test" / "metadata.csv", [{"file_name": "missing.png", "text": "lost"}])
    assert captions_of(tmp_path) == {"a/1.png": ("one",)}
    (tmp_path / "train" / "a" / "metadata.csv").rename(tmp_path / "metadata.csv")
    write_table(
        tmp_path / "metadata.csv", [{"file_name": "train/a/1.png", "text": "one"}, {"file_name": "3.png", "text": "3"}]
    )
    assert captions_of(tmp_path) == {"train/a/1.png": ("one",), "3.png": ("3",)}


def test_two_metadata_files_in_one_folder_are_refused(tmp_path):
    write_images(tmp_path, "a.png")
    for suffix in (".csv", ".jsonl"):
        write_table(tmp_path / f"metadata{suffix}", [{"file_name": "a.png", "text": "a"}])
    with pytest.raises(ValueError, match=r"has several of metadata\.jsonl, .*Expected one\. Remove the others"):
        captions_of(tmp_path)


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "captions.json"])
def test_a_named_file_of_captions_lists_the_images_and_rows_of_one_image_are_its_captions(name, tmp_path):
    write_images(tmp_path / "images", "a.png", "b.png", "unlisted.png")
    rows = [
        {"image": "a.png", "caption": "one"},
        {"image": "b.png", "caption": "b"},
        {"image": "a.png", "caption": "two"},
    ]
    write_table(tmp_path / name, rows)
    found = captions_of(tmp_path / "images", captions_file=f"../{name}")
    assert found == {"a.png": ("one", "two"), "b.png": ("b",)}


def test_columns_of_a_file_of_captions_can_be_named_and_the_delimiter_is_found(tmp_path):
    write_images(tmp_path, "a.png")
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\na.png| 0| A man, smiling .\n")
    with pytest.raises(
        ValueError, match=r"has the columns image_name.*Expected one of file_name, .*Set `image_column`"
    ):
        captions_of(tmp_path, captions_file="results.csv")
    with pytest.raises(ValueError, match=r"no caption \(text is in comment_number, comment; `caption_column` chooses"):
        captions_of(tmp_path, captions_file="results.csv", image_column="image_name")
    named = {"captions_file": "results.csv", "image_column": "image_name", "caption_column": "comment"}
    assert captions_of(tmp_path, **named) == {"a.png": ("A man, smiling .",)}


def coco(root, split="train2017", **changed):
    write_images(root, f"{split}/1.jpg", f"{split}/2.jpg")
    found = {
        "info": {},
        "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 9, "file_name": "2.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "one"},
            {"id": 2, "image_id": 9, "caption": "two"},
            {"id": 3, "image_id": 7, "caption": "uno"},
        ],
    } | changed
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(found))
    return root


def test_annotations_of_coco_are_read(tmp_path):
    coco(tmp_path)
    coco(tmp_path, "val2017", images=[{"id": 7, "file_name": "2.jpg"}])
    settings = {"captions_file": "../annotations/captions_{split}2017.json"}
    assert captions_of(tmp_path / "{split}2017", **settings) == {"1.jpg": ("one", "uno"), "2.jpg": ("two",)}
    with pytest.raises(ValueError, match=r"captions of an unknown image \(1 of image 9\)"):
        captions_of(tmp_path / "{split}2017", split="val", **settings)


def karpathy(root, rows, with_folders=True):
    """A `dataset_coco.json` of (file, split, captions), or a `dataset_flickr30k.json`, which has no folders."""
    images = []
    for number, (name, split, captions) in enumerate(rows):
        folder, _, file = name.rpartition("/")
        sentences = [{"raw": text, "tokens": text.split(), "imgid": number} for text in captions]
        images.append({"filename": file, "split": split, "sentences": sentences, "imgid": number})
        images[-1] |= {"filepath": folder, "cocoid": number} if with_folders else {}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


FIVE = ["one .", "two", "three", "two", "five"]  # a repeated caption counts twice
COCO_ROWS = [
    ("train2014/1.jpg", "train", FIVE), ("val2014/2.jpg", "restval", ["b"]), ("val2014/3.jpg", "val", ["c"]),
    ("val2014/4.jpg", "test", FIVE[::-1]), ("val2014/5.jpg", "test", ["e"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", {"train2014/1.jpg": tuple(FIVE), "val2014/2.jpg": ("b",)}),
        ("validation", {"val2014/3.jpg": ("c",)}),
        ("test", {"val2014/4.jpg": tuple(FIVE[::-1]), "val2014/5.jpg": ("e",)}),
        ("restval", {"val2014/2.jpg": ("b",)}),
    ],
)
def test_karpathy_s_splits_of_coco_are_read_with_all_captions_in_order(split, expected, tmp_path):
    write_images(karpathy(tmp_path, COCO_ROWS), *(name for name, _, _ in COCO_ROWS))
    assert captions_of(tmp_path, captions_file="dataset.json", split=split) == expected


def test_images_of_other_splits_need_not_exist_and_their_folders_are_no_splits(tmp_path):
    rows = [("train/1.jpg", "test", ["a"]), ("val/2.jpg", "train", ["b"]), ("val/3.jpg", "val", ["c"])]
    write_images(karpathy(tmp_path, rows), "train/1.jpg")
    (tmp_path / "val").mkdir()
    (row,) = open_images(DataConfig(path=str(tmp_path), captions_file="dataset.json", split="test"))
    assert (row.source.name, row.captions, row.fields) == ("train/1.jpg", ("a",), {"karpathy_split": "test"})


def test_flickr30k_s_file_names_no_folder_and_may_lie_elsewhere(tmp_path):
    karpathy(tmp_path, [("1.jpg", "test", FIVE), ("2.jpg", "train", ["b"])], with_folders=False)
    write_images(tmp_path / "images", "1.jpg", "2.jpg", "unlisted.jpg")
    settings = {"captions_file": "../dataset.json", "split": "test"}
    assert captions_of(tmp_path / "images", **settings) == {"1.jpg": tuple(FIVE)}
    (tmp_path / "dataset.json").rename(tmp_path / "images" / "of_test.json")
    settings["captions_file"] = "of_{split}.json"
    assert captions_of(tmp_path / "images", **settings) == {"1.jpg": tuple(FIVE)}


def test_faults_of_karpathy_s_file_are_reported_with_the_image(tmp_path):
    rows = [("1.jpg", "test", ["a"]), ("gone.jpg", "test", ["b"]), ("3.jpg", "dev", ["c"]), ("4.jpg", "test", []),
            ("5.jpg", "test", [" "])]  # fmt: skip
    write_images(karpathy(tmp_path, rows, with_folders=False), "1.jpg", "3.jpg", "4.jpg", "5.jpg")
    with pytest.raises(ValueError, match="4 of 5 rows are bad") as error:
        captions_of(tmp_path, captions_file="dataset.json", split="test")
    for line in (
        "image 1 of dataset.json: image cannot be opened (`gone.jpg`: No such file or directory)",
        "image 2 of dataset.json: unknown split (dev; expected one of train, restval, val, test)",
        "image 3 of dataset.json: no caption",
        "image 4 of dataset.json: empty caption",
    ):
        assert line in str(error.value)
    good = {"filepath": "", "filename": "1.jpg", "split": "test", "sentences": [{"raw": "a"}]}
    images = [good, good | {"sentences": None}, good | {"filepath": "images", "filename": None}, good | {"split": []}]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    kept = open_images(DataConfig(path=str(tmp_path), captions_file="dataset.json", split="test", on_bad="skip"))
    assert (len(kept), kept.reasons) == (1, {"no caption": 1, "no `file_name`": 1, "unknown split": 1})


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"annotations": [{"image_id": 7, "bbox": []}]}, "none of them has a caption"),
        ({"images": None}, "keys info, images, annotations"),
        ({"annotations": [3]}, "keys info, images, annotations"),
    ],
)
def test_json_of_another_layout_is_refused(content, found, tmp_path):
    root = coco(tmp_path, **content)
    with pytest.raises(ValueError, match=rf"captions_train2017\.json` cannot be read as captions \({found}"):
        captions_of(root / "train2017", captions_file="../annotations/captions_train2017.json")


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("captions.json", b"{", "broken JSON"),
        ("captions.json", b"3", r"\(int\)"),
        ("captions.parquet", b"PAR1", "complete parquet file"),
        ("captions.csv", b"", "has the columns none"),
        ("captions.xml", b"<a/>", "no suffix of a file of captions"),
    ],
)
def test_damaged_files_are_refused(name, data, error, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=error):
        list(read_records(tmp_path / name, name, ["file_name"]))


def test_bad_lines_of_csv_are_reported_with_their_number(tmp_path):
    write_images(tmp_path, "a.png")
    lines = b'file_name,text\na.png,"two\nlines"\na.png\n\na.png,x,y\n\xe4.png,x\na.png,' + b"x" * 140_000 + b"\n"
    (tmp_path / "metadata.csv").write_bytes(lines)
    found = [(entry.place, entry.fault) for entry in scan_folder(SplitFolder(tmp_path))]
    assert found == [
        ("line 2 of metadata.csv", None),
        ("line 4 of metadata.csv", "broken CSV"),
        ("line 6 of metadata.csv", "broken CSV"),
        ("line 7 of metadata.csv", "not UTF-8"),
        ("line 8 of metadata.csv", "broken CSV"),
    ]


@pytest.mark.parametrize("path", ["set", "no_such_folder", "owner/name"])
def test_missing_file_of_captions_is_named_whatever_the_path(path, tmp_path, monkeypatch):
    write_images(tmp_path / "set", "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.csv` does not exist\. Expected a file of captions"):
        captions_of(path, captions_file="no.csv")


@pytest.mark.parametrize("kind", ["hub", "webdataset", "classes"])
def test_a_file_of_captions_is_refused_for_what_is_no_folder(kind):
    with pytest.raises(ValidationError, match=rf"`captions_file` is set for the kind `{kind}`"):
        DataConfig(path="set", captions_file="captions.csv", kind=kind)


def test_an_image_of_many_rows_is_read_once_and_every_fault_counts(tmp_path, monkeypatch):
    write_images(tmp_path, "a.png")
    rows = [{"file_name": "a.png", "text": f"caption {number}"} for number in range(5)] + [{"file_name": "a.png"}] * 2
    write_table(tmp_path / "metadata.jsonl", rows)
    names, describe = [], entries.describe_file
    monkeypatch.setattr(entries, "describe_file", lambda path, name: names.append(name) or describe(path, name))
    first, *bad = scan_folder(SplitFolder(tmp_path))
    assert (names, len(first.captions), [entry.fault for entry in bad]) == (["a.png"], 5, ["no caption"] * 2)


def test_each_unknown_image_of_coco_is_a_fault_of_its_own(tmp_path):
    annotations = [{"image_id": number, "caption": "x"} for number in (7, 11, 12)]
    root = coco(tmp_path, images=[{"id": 7, "file_name": "1.jpg"}], annotations=annotations)
    settings = {"captions_file": "../annotations/captions_train2017.json", "on_bad": "skip"}
    kept = open_images(DataConfig(path=str(root / "train2017"), **settings))
    assert kept.reasons == {"captions of an unknown image": 2}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"captions.csv": "image,caption\n1.png,a cat"}, "captions.csv"),
        ({"captions.txt": "1.png#0\ta cat"}, "captions.txt"),
        ({"annotations/captions_train2017.json": '{"images": [{"file_name": "1.png"}]}'}, "captions_train2017.json"),
        ({"text/1.txt": "a cat"}, "1.txt"),
        ({"captions.csv": "image,caption\nMY CAT 2.PNG,a cat"}, "captions.csv"),
        ({"captions.txt": "2.JPG#0 a cat"}, "captions.txt"),
        ({"images/data.json": '{"images/1.png": {"caption": "a cat"}}'}, "data.json"),
    ],
)
def test_captions_of_a_layout_that_is_not_read_are_named_and_no_folder_becomes_a_class(
    files, named, tmp_path, monkeypatch
):
    write_images(tmp_path, "images/1.png", "images/MY CAT 2.PNG", "images/2.JPG")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{named}` seems to hold captions of the images in .*Set `captions_file`"):
        captions_of(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match=r"seems to hold captions"):
        captions_of(tmp_path.name)
    assert captions_of(tmp_path, kind="classes")["images/1.png"] == ("a photo of a images",)


def test_texts_about_something_else_leave_class_folders_alone(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "README.txt").write_text("A set of cats and dogs, see https://x.org/logo.png")
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    assert find_source(DataConfig(path=str(tmp_path)))[0] == "classes"
    (tmp_path / "dog" / "broken.txt").symlink_to("missing")
    (tmp_path / "dog" / "3.nef").write_bytes(square(image_format="TIFF"))
    kept = open_images(DataConfig(path=str(tmp_path), on_bad="skip"))
    assert len(kept) == 2
    assert kept.first_faults[0].startswith("`dog/3.nef`: image format that is not read")
