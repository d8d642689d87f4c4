"""sidecars.py: a text beside each image, in flat folders, sub-folders, kohya's and img2dataset's."""

import json

import datasets
import pytest

from palindiff.data.folder import list_files
from palindiff.data.samples import SampleReading
from palindiff.data.sidecars import has_sidecars, scan_sidecars
from palindiff.data.sources import DataConfig, find_source, open_images
from toys.sources import square, write_images, write_tar


def write(root, files):
    """Images of the names with an image's suffix, and texts of the others."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(square() if text is None else text.encode())
    return root


def entries_of(root, **settings):
    return list(scan_sidecars(root, list_files(root), SampleReading("a {c}", **settings)))


def captions_of(path, **settings):
    return {row.source.name: row.captions for row in open_images(DataConfig(path=str(path), **settings))}


@pytest.mark.parametrize("folder", ["", "train/", "a/b/"])
@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_texts_beside_images_are_their_captions_and_folders_are_no_classes(folder, suffix, tmp_path):
    files = {
        f"{folder}1.png": None,
        f"{folder}1{suffix}": "a red cat\n",
        f"{folder}2.jpg": None,
        f"{folder}2.txt": "b",
    }
    root = write(tmp_path, files)
    assert find_source(DataConfig(path=str(root)))[0] == "sidecars"
    found = captions_of(root)
    assert [captions for _, captions in sorted(found.items())] == [("a red cat",), ("b",)]
    assert open_images(DataConfig(path=str(root)))[0].label is None


def test_lines_of_a_text_are_captions(tmp_path):
    root = write(tmp_path, {"1.png": None, "1.txt": "one\n\n two \r\nthree"})
    assert entries_of(root)[0].captions == ("one", "two", "three")


def test_images_of_kohyas_folders_count_as_often_as_the_folder_says(tmp_path):
    files = {"3_sks dog/1.png": None, "3_sks dog/1.txt": "a dog", "1_cat/2.png": None, "1_cat/2.txt": "a cat"}
    root = write(
        tmp_path, files | {"2019_trip/3.png": None, "2019_trip/3.txt": "a year", "2_3/4.png": None, "2_3/4.txt": "x"}
    )
    names = [entry.name for entry in entries_of(root)]
    assert {name: names.count(name) for name in names} == {
        "3_sks dog/1.png": 3,
        "1_cat/2.png": 1,
        "2019_trip/3.png": 1,
        "2_3/4.png": 1,
    }


def test_img2dataset_files_are_read_with_their_fields(tmp_path):
    record = {"caption": "a red square", "url": "u", "key": "000000000", "status": "success"}
    files = {
        "00000/000000000.jpg": None,
        "00000/000000000.txt": "a red square",
        "00000/000000000.json": json.dumps(record),
    }
    root = write(tmp_path / "set", files | {"00000_stats.json": "{}"})
    table = datasets.Dataset.from_dict({"url": ["u"], "caption": ["a red square"], "key": ["000000000"]})
    table.to_parquet(root / "00000.parquet")
    (row,) = open_images(DataConfig(path=str(root)))
    assert (row.captions, row.fields["url"], row.label) == (("a red square",), "u", None)
    for text in root.glob("*/*.txt"):
        text.unlink()
    assert captions_of(root) == {"00000/000000000.jpg": ("a red square",)}


@pytest.mark.parametrize(
    ("files", "place", "fault", "found"),
    [
        ({"2.png": None}, "`2.png`", "no caption", "expected `2.txt` beside it"),
        ({"2.png": None, "2.txt": " \n"}, "`2.png`", "empty caption", ""),
        ({"2.png": None, "2.json": '{"prompt": "x"}'}, "`2.png`", "no caption", "text is in prompt; `caption_column`"),
        ({"2.png": None, "2.json": "{"}, "`2.png`", "broken JSON", ""),
        ({"2.txt": "lost"}, "`2.txt`", "caption without an image", ""),
    ],
)
def test_what_lacks_its_other_half_is_reported(files, place, fault, found, tmp_path):
    root = write(tmp_path, {"1.png": None, "1.txt": "one"} | files)
    (bad,) = [entry for entry in entries_of(root) if entry.fault]
    assert (bad.place, bad.fault) == (place, fault)
    assert found in bad.found
    with pytest.raises(ValueError, match="1 of 2 rows are bad"):
        captions_of(root)


def test_damaged_and_overlong_texts_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("palindiff.data.sidecars.MAX_TEXT_BYTES", 8)
    root = write(tmp_path, {"1.png": None, "1.txt": "x" * 9, "2.png": None})
    (root / "2.txt").write_bytes(b"\xe4")
    assert [entry.fault for entry in entries_of(root)] == ["text too long", "not UTF-8"]
    (root / "1.txt").unlink()
    (root / "1.txt").mkdir()
    assert entries_of(root)[0].fault == "no caption"


def test_texts_about_the_set_are_no_captions(tmp_path):
    root = write(
        tmp_path, {"1.png": None, "1.txt": "one", "README.txt": "about", "LICENSE.txt": "free", "x/notes.txt": "n"}
    )
    assert [entry.fault for entry in entries_of(root)] == [None]


def test_class_numbers_are_named_by_the_list_beside(tmp_path):
    root = write(tmp_path, {"1.png": None, "1.cls": "1", "classnames.txt": "cat\ndog"})
    assert captions_of(root) == {"1.png": ("a photo of a dog",)}


def test_caption_key_chooses_a_key_of_the_json(tmp_path):
    root = write(tmp_path, {"1.png": None, "1.txt": "of the text", "1.json": '{"alt": "of the JSON"}'})
    assert captions_of(root, caption_column="alt") == {"1.png": ("of the JSON",)}


def test_splits_are_folders_and_never_taken_for_training(tmp_path):
    root = write(tmp_path, {"train/1.png": None, "train/1.txt": "one", "test/2.png": None, "test/2.txt": "two"})
    assert captions_of(root) == {"1.png": ("one",)}
    assert captions_of(root, split="test") == {"2.png": ("two",)}
    (root / "train" / "1.txt").unlink()
    (root / "train" / "1.png").unlink()
    with pytest.raises(ValueError, match="no images of the split `train`"):
        captions_of(root)


def test_archives_win_and_images_alone_have_no_sidecars(tmp_path):
    write_images(tmp_path / "plain", "1.png")
    assert not has_sidecars(tmp_path / "plain", list_files(tmp_path / "plain"))
    root = write(tmp_path / "both", {"1.png": None, "1.txt": "beside"})
    write_tar(root / "0.tar", {"a.png": square(), "a.txt": b"in the tar"})
    assert list(captions_of(root).values()) == [("in the tar",)]
    assert captions_of(root, kind="sidecars") == {"1.png": ("beside",)}
