"""sources.py: which kind a path is, which split, how bad rows are reported, and sets read by other processes."""

import json
import pickle
import shutil

import datasets
import pytest
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader

from palindiff.data.images import ImageFileError, decode_image
from palindiff.data.sources import DataConfig, find_source, open_images
from toys.sources import encode, sample, square, write_images, write_lines, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(*names):
    return [{"file_name": f"{name}.png", "caption": name} for name in names]


def write_folder(root, *names):
    return write_lines(root, rows(*names), [f"{name}.png" for name in names])


def write_parquet(path, *captions):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [square()] * len(captions), "text": list(captions)}
    datasets.Dataset.from_dict(columns).to_parquet(path)


def captions_of(path, **settings):
    return [row.captions[0] for row in open_images(DataConfig(path=str(path), **settings))]


@pytest.fixture
def every_kind(tmp_path):
    """One split of each kind, to be detected from the files."""
    write_folder(tmp_path / "folder" / "train", "red", "green")
    write_images(tmp_path / "classes" / "train", "cat/a.png", "dog/a.png")
    write_tar(tmp_path / "webdataset" / "train" / "0.tar", sample("a", "red"))
    write_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet", "red")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": [square()], "text": ["red"]})}).save_to_disk(
        tmp_path / "hub"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "captions"),
    [
        ("folder", ["red", "green"]),
        ("classes", ["a photo of a cat", "a photo of a dog"]),
        ("webdataset", ["red"]),
        ("parquet", ["red"]),
        ("hub", ["red"]),
    ],
)
def test_kind_is_detected_from_the_files(kind, captions, every_kind):
    assert find_source(DataConfig(path=str(every_kind / kind)))[0] == kind
    assert captions_of(every_kind / kind) == captions_of(every_kind / kind, kind=kind) == captions
    with pytest.raises(ValueError, match="split `test`"):
        captions_of(every_kind / kind, split="test", kind=kind)


def test_archives_win_over_the_tables_that_img2dataset_writes_beside(tmp_path):
    write_tar(tmp_path / "00000.tar", sample("a", "of the archive"))
    write_parquet(tmp_path / "00000.parquet", "of the table")
    assert captions_of(tmp_path) == ["of the archive"]
    assert captions_of(tmp_path, kind="parquet") == ["of the table"]


def test_named_kind_wins_over_what_would_be_found(tmp_path):
    write_folder(tmp_path, "cat/a")
    assert captions_of(tmp_path) == ["cat/a"]
    assert captions_of(tmp_path, kind="classes", caption_template="my {c}") == ["my cat"]


def test_single_files_and_patterns_are_read(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", sample("a", f"of tar {number}"))
    write_parquet(tmp_path / "a.parquet", "of parquet")
    assert captions_of(tmp_path / "1.tar") == ["of tar 1"]
    assert captions_of(tmp_path / "{0..2}.tar") == ["of tar 0", "of tar 1", "of tar 2"]
    assert captions_of(tmp_path / "[12].tar") == ["of tar 1", "of tar 2"]
    assert captions_of(tmp_path / "a.parquet") == ["of parquet"]


def test_split_is_a_folder_a_part_of_the_path_or_of_the_file_name(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / split, split)
        write_tar(tmp_path / f"{split}-0.tar", sample("a", f"tar of {split}"))
        write_parquet(tmp_path / "tables" / f"{split}-0.parquet", f"table of {split}")
    for split in ("train", "test"):
        assert captions_of(tmp_path, split=split) == [split]
        assert captions_of(tmp_path / "{split}", split=split) == [split]
        assert captions_of(tmp_path / "{split}-{0..0}.tar", split=split) == [f"tar of {split}"]
        assert captions_of(tmp_path / "tables", split=split) == [f"table of {split}"]


def test_what_is_not_split_is_never_taken_for_a_test_set(tmp_path):
    write_folder(tmp_path / "set", "red")
    write_tar(tmp_path / "0.tar", sample("a", "red"))
    write_parquet(tmp_path / "tables" / "a.parquet", "red")
    assert captions_of(tmp_path / "set") == ["red"]
    for path in ("set", "0.tar", "*.tar", "tables", "tables/a.parquet"):
        with pytest.raises(ValueError, match=r"split `validation`|cannot be read as `validation`"):
            captions_of(tmp_path / path, split="validation")


def test_tables_named_after_another_split_are_not_taken_for_training(tmp_path):
    write_parquet(tmp_path / "test-0.parquet", "red")
    write_parquet(tmp_path / "tested.parquet", "green")
    with pytest.raises(ValueError, match="no images of the split `train`"):
        captions_of(tmp_path)


def test_splits_that_are_there_are_named_when_another_is_asked_for(tmp_path):
    write_folder(tmp_path / "train", "red")
    write_tar(tmp_path / "test" / "0.tar", sample("a", "red"))
    with pytest.raises(
        ValueError, match=r"no images of the split `val` \(splits found: test, train\)\. Expected meta"
    ):
        captions_of(tmp_path, split="val")


@pytest.mark.parametrize("kind", ["auto", "folder", "webdataset", "parquet", "classes"])
def test_missing_path_is_refused(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing` does not exist\. Expected a folder, \.tar, \.parquet"):
        captions_of(tmp_path / "nothing", kind=kind)


def test_missing_folder_beside_others_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="`data/emoji` does not exist"):
        captions_of("data/emoji")


def test_folder_of_no_kind_is_refused(tmp_path):
    (tmp_path / "loose.png").write_bytes(square())
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match=r"Expected metadata\.jsonl, .*, \*\.tar, \*\.parquet or class folders in"):
        captions_of(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt` is not a supported kind of source"):
        captions_of(tmp_path / "notes.txt")


def write_faulty(root):
    """Two good rows, and fourteen bad ones of four kinds, one of which only a decoder finds."""
    lines = [*rows("red", "green", "cut"), b"{", *rows(*(f"missing{number}" for number in range(12)))]
    write_lines(root, lines, ["red.png", "green.png", "left_over.png"])
    (root / "cut.png").write_bytes(encode(Image.linear_gradient("L"))[:150])
    return root


def test_all_bad_rows_are_reported_at_once_the_first_ten_by_name(tmp_path):
    root = write_faulty(tmp_path / "set")
    with pytest.raises(ValueError, match="rows are bad") as refused:
        captions_of(root)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"`{root}`: 14 of 17 rows are bad. Expected an image and a caption in each."
    assert lines[1].startswith("  line 4 of metadata.jsonl: broken JSON (Expecting property name")
    assert lines[2] == "  line 5 of metadata.jsonl: image cannot be opened (`missing0.png`: No such file or directory)"
    assert lines[-2:] == ["  and 4 more", "Fix them, or leave them out with `on_bad: skip`."]
    assert len(lines) == 1 + 10 + 2


def test_bad_rows_are_left_out_on_request_and_counted_by_kind(tmp_path):
    root = write_faulty(tmp_path / "set")
    kept = open_images(DataConfig(path=str(root), on_bad="skip"))
    assert [row.captions for row in kept] == [("red",), ("green",), ("cut",)]
    assert kept.num_left_out == 14
    assert kept.left_out == (
        f"14 of 17 rows of `{root}` were left out: image cannot be opened (12), broken JSON (1), "
        "image without a line in metadata.jsonl (1)."
    )


def test_damaged_image_is_found_when_asked_for_and_when_read(tmp_path):
    config = DataConfig(path=str(write_faulty(tmp_path / "set")), on_bad="skip")
    with pytest.raises(ImageFileError, match=r"set/cut\.png` cannot be decoded"):
        decode_image(open_images(config)[2].source)
    kept = open_images(config.model_copy(update={"check_images": True}))
    assert [row.captions for row in kept] == [("red",), ("green",)]
    assert "damaged image (1)" in kept.left_out
    with pytest.raises(
        ValueError, match=r"15 of 17 rows are bad\.(.|\n)*line 3 .*: damaged image \(.*cut\.png` cannot"
    ):
        open_images(config.model_copy(update={"check_images": True, "on_bad": "refuse"}))


def test_whole_sources_have_nothing_left_out(tmp_path):
    kept = open_images(DataConfig(path=str(write_folder(tmp_path, "red")), check_images=True))
    assert (len(kept), kept.num_left_out, kept.left_out) == (1, 0, "")


def test_source_without_a_usable_row_is_refused_even_when_skipping(tmp_path):
    write_lines(tmp_path / "bad", rows("missing"))
    with pytest.raises(ValueError, match=r"no usable row; 1 of 1 .* opened \(1\) \(the first: .*`missing\.png`"):
        captions_of(tmp_path / "bad", on_bad="skip")
    write_lines(tmp_path / "empty", [])
    with pytest.raises(ValueError, match=r"empty` has no image\. Expected an image with a caption"):
        captions_of(tmp_path / "empty")


def test_rows_are_taken_by_number_from_the_end_and_in_slices(tmp_path):
    images = open_images(DataConfig(path=str(write_folder(tmp_path, "red", "green", "blue"))))
    assert images[-1].captions == ("blue",)
    assert [row.captions[0] for row in images[::-2]] == ["blue", "red"]
    assert [row.source.name for row in images] == ["red.png", "green.png", "blue.png"]
    with pytest.raises(IndexError):
        images[3]


def fingerprint_of(path, **settings):
    return open_images(DataConfig(path=str(path), **settings)).fingerprint


def test_fingerprint_knows_the_rows_and_not_their_place(tmp_path):
    root = write_folder(tmp_path / "set", "red", "green")
    found = [fingerprint_of(root)]
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    assert fingerprint_of(tmp_path / "copy") == found[0]
    (root / "red.png").write_bytes(square("yellow"))
    found.append(fingerprint_of(root))
    write_lines(root, [*rows("red"), {"file_name": "green.png", "caption": "greenish"}])
    found.append(fingerprint_of(root))
    write_lines(root, [{"file_name": "green.png", "caption": "greenish"}, *rows("red")])
    found.append(fingerprint_of(root))
    (root / "red.png").rename(root / "rose.png")
    write_lines(root, [{"file_name": "green.png", "caption": "greenish"}, {"file_name": "rose.png", "caption": "red"}])
    found.append(fingerprint_of(root))
    assert len(set(found)) == len(found) == 5


def test_fingerprint_of_the_images_knows_their_contents_and_order_alone(tmp_path):
    def of_images() -> str:
        return open_images(DataConfig(path=str(root))).images_fingerprint

    root = write_folder(tmp_path / "set", "red", "green")
    before = of_images()
    (root / "red.png").rename(root / "rose.png")
    write_lines(root, [{"file_name": "rose.png", "caption": "rose", "note": "new"}, *rows("green")])
    assert of_images() == before
    write_lines(root, [*rows("green"), {"file_name": "rose.png", "caption": "rose"}])
    reversed_order = of_images()
    (root / "rose.png").write_bytes(square("yellow"))
    assert len({before, reversed_order, of_images()}) == 3


def test_fingerprint_of_an_archive_and_a_table_knows_their_rows(tmp_path):
    found = []
    for number, (colour, caption) in enumerate((("red", "red"), ("blue", "red"), ("red", "rose"))):
        write_tar(tmp_path / str(number) / "0.tar", sample("a", caption, colour))
        table = datasets.Dataset.from_dict({"image": [square(colour)], "text": [caption]})
        (tmp_path / f"table{number}").mkdir()
        table.to_parquet(tmp_path / f"table{number}" / "a.parquet")
        found += [fingerprint_of(tmp_path / str(number)), fingerprint_of(tmp_path / f"table{number}")]
    assert len(set(found)) == len(found) == 6
    shutil.copytree(tmp_path / "0", tmp_path / "copy", copy_function=shutil.copyfile)
    assert fingerprint_of(tmp_path / "copy") == found[0]


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_set_survives_pickling(kind, every_kind):
    images = open_images(DataConfig(path=str(every_kind / kind)))
    again = pickle.loads(pickle.dumps(images))
    assert again.fingerprint == images.fingerprint
    assert [row.source for row in again] == [row.source for row in images]


def test_spawned_workers_read_the_same_rows(every_kind):
    images = open_images(DataConfig(path=str(every_kind / "folder")))
    loader = DataLoader(images, batch_size=2, collate_fn=list, num_workers=1, multiprocessing_context="spawn")
    (batch,) = loader
    assert batch == list(images)
    assert decode_image(batch[0].source).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "a", "kinds": "folder"}, "kinds"),
        ({"path": "a", "kind": "zip"}, "'webdataset'"),
        (
            {"path": "a", "caption_template": "a photo"},
            r"`a photo` names no class\. Expected \{c\} in place of its name\. Use 'a photo of a \{c\}'",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        DataConfig(**settings)


@pytest.mark.parametrize("held_out", [["validation/metadata.jsonl"], ["test/cat.png", "cat/a.png"], ["dev/a.png"]])
def test_held_out_splits_are_never_read_as_the_classes_of_a_missing_training_split(held_out, tmp_path):
    for name in held_out:
        write_images(tmp_path, f"{name.split('/')[0]}/0.png")
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"has no images of the split `train`"):
        open_images(DataConfig(path=str(tmp_path), split="train"))


def set_above_splits(root, folders, unlisted=()):
    """One metadata.jsonl above the folders of all images, "" being the root itself."""
    lines = []
    for number, folder in enumerate([*folders, *unlisted]):
        name = f"{folder}/{number}.png".lstrip("/")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(square("red"))
        if number < len(folders):
            lines.append(json.dumps({"file_name": name, "caption": f"caption {number}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def captions_of_split(root, split):
    return [caption for row in open_images(DataConfig(path=str(root), split=split)) for caption in row.captions]


def test_one_metadata_file_above_the_splits_gives_each_its_own_rows(tmp_path):
    root = set_above_splits(tmp_path, ["train", "train/a", "test", "test/train", "validation"])
    assert captions_of_split(root, "train") == ["caption 0", "caption 1"]
    assert captions_of_split(root, "test") == ["caption 2", "caption 3"]
    assert captions_of_split(root, "validation") == ["caption 4"]
    with pytest.raises(ValueError, match=r"no images of the split `dev` \(splits found: .*train"):
        captions_of_split(root, "dev")


def test_what_lies_in_no_split_s_folder_is_train(tmp_path):
    root = set_above_splits(tmp_path / "a", ["", "cats", "test"])
    assert captions_of_split(root, "train") == ["caption 0", "caption 1"]
    assert captions_of_split(root, "test") == ["caption 2"]
    unsplit = set_above_splits(tmp_path / "b", ["", "cats"])
    assert captions_of_split(unsplit, "train") == ["caption 0", "caption 1"]


def test_an_image_without_a_line_is_a_fault_of_its_own_split(tmp_path):
    root = set_above_splits(tmp_path, ["train", "test"], unlisted=["test"])
    assert captions_of_split(root, "train") == ["caption 0"]
    with pytest.raises(ValueError, match=r"`test/2\.png`: image without a line in metadata\.jsonl"):
        captions_of_split(root, "test")
