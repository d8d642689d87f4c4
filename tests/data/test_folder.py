"""folder.py: rows of metadata.jsonl and class folders as they stand, and every bad row with its line."""

import io
import os

import pyarrow
import pytest
from PIL import Image

from palindiff.data.entries import SAMPLE_BYTES, content_id
from palindiff.data.folder import SplitFolder, list_images, scan_classes, scan_folder
from palindiff.data.index import index_in_memory
from toys.sources import square, write_images, write_lines

LONG = "a very red square " * 556  # 10,008 characters


def only_entry(root, **keys):
    (entry,) = scan_folder(SplitFolder(root), **keys)
    return entry


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        ({"captions": ["a red square", "red"]}, ("a red square", "red")),
        ({"caption": "a red square"}, ("a red square",)),
        ({"text": " a red square\n"}, ("a red square",)),
        ({"caption": ["a red square"]}, ("a red square",)),
        ({"captions": None, "text": "red"}, ("red",)),
        ({"caption": "line \u2028 separator"}, ("line \u2028 separator",)),
        ({"caption": LONG}, (LONG.strip(),)),
    ],
)
def test_captions_are_read_in_every_usual_form(texts, captions, tmp_path):
    root = write_lines(tmp_path, [{"file_name": "a.png", **texts}], ["a.png"])
    entry = only_entry(root)
    assert (entry.fault, entry.name, entry.captions) == (None, "a.png", captions)


def test_label_and_further_keys_are_kept_as_text(tmp_path):
    row = {"file_name": "a.png", "text": "red", "label": 3, "is_new": True, "tags": ["a"], "none": None}
    entry = only_entry(write_lines(tmp_path, [row], ["a.png"]))
    assert (entry.label, entry.fields) == ("3", {"is_new": "True", "tags": '["a"]'})


def test_named_keys_are_used_instead_of_the_usual(tmp_path):
    root = write_lines(tmp_path, [{"image": "a.png", "caption": "usual", "title": "named"}], ["a.png"])
    entry = only_entry(root, image_key="image", caption_key="title")
    assert (entry.name, entry.captions, entry.fields) == ("a.png", ("named",), {"caption": "usual"})


def test_empty_lines_a_byte_order_mark_and_relative_steps_are_no_faults(tmp_path):
    lines = [b'\xef\xbb\xbf{"file_name": "sub/../sub/a.png", "text": "red"}\r', b"", b"  "]
    assert only_entry(write_lines(tmp_path, lines, ["sub/a.png"])).name == "sub/a.png"


@pytest.mark.parametrize(
    ("line", "fault", "found"),
    [
        ({"file_name": "no.png", "text": "red"}, "image cannot be opened", "`no.png`: No such file"),
        ({"file_name": ".", "text": "red"}, "image cannot be opened", "Is a directory"),
        ({"file_name": "\0.png", "text": "red"}, "image cannot be opened", "null"),
        ({"text": "red", "file": "a.png"}, "no `file_name`", "keys here: text, file"),
        ({"file_name": 3, "text": "red"}, "no `file_name`", "keys here"),
        ({"file_name": "../a.png", "text": "red"}, "image outside the folder", "`../a.png`"),
        ({"file_name": "sub/../../a.png", "text": "red"}, "image outside the folder", "a.png"),
        ({"file_name": "/etc/a.png", "text": "red"}, "image outside the folder", "`/etc/a.png`"),
        ({"file_name": "empty.png", "text": "red"}, "empty image file", "`empty.png` has 0 bytes"),
        ({"file_name": "a.png"}, "no caption", ""),
        ({"file_name": "a.png", "captions": []}, "no caption", ""),
        ({"file_name": "a.png", "caption": ""}, "empty caption", ""),
        ({"file_name": "a.png", "captions": ["red", " \t\n"]}, "empty caption", "only white space"),
        ({"file_name": "a.png", "captions": ["red", 3]}, "caption is not text", "found list"),
        (b'{"file_name": "a.png", "text": "red"', "broken JSON", "delimiter"),
        (b'["a.png", "red"]', "broken JSON", "found a list"),
        (b'{"file_name": "a.png", "text": "\\ud800"}', "broken JSON", "surrogates"),
        (b"[" * 100_000, "broken JSON", "recursion"),
        (b'{"file_name": "a.png", "text": "\xe4"}', "not UTF-8", "at byte"),
    ],
)
def test_bad_rows_are_reported_with_their_line(line, fault, found, tmp_path):
    good = {"file_name": "good.png", "text": "green"}
    root = write_lines(tmp_path / "set", [good, line], ["good.png"])
    (root / "empty.png").touch()
    (root / "a.png").write_bytes(square())
    (tmp_path / "a.png").write_bytes(square())
    first, bad, *_ = scan_folder(SplitFolder(root))
    assert (first.fault, bad.place, bad.fault) == (None, "line 2 of metadata.jsonl", fault)
    assert found.lower() in bad.found.lower()


def test_image_without_a_line_is_reported(tmp_path):
    row = {"file_name": "a.png", "text": "red"}
    root = write_lines(tmp_path, [row], ["a.png", "sub/b.JPG", ".hidden.png", ".cache/c.png"])
    (root / "notes.txt").write_text("no image")
    _, left_over = scan_folder(SplitFolder(root))
    assert (left_over.place, left_over.fault) == ("`sub/b.JPG`", "image without a line in metadata.jsonl")


def test_content_distinguishes_images_whatever_their_place_and_time(tmp_path):
    row = {"file_name": "a.png", "text": "red"}
    contents = []
    for name, colour in (("one", "red"), ("two", "red"), ("three", "blue")):
        root = write_lines(tmp_path / name, [row])
        (root / "a.png").write_bytes(square(colour, image_format="BMP"))  # all of one size
        contents.append(only_entry(root).content)
    assert contents[0] == contents[1] != contents[2]


def test_class_folders_give_label_and_caption(tmp_path):
    write_images(tmp_path, "golden_retriever/b.png", "golden_retriever/a.PNG", "t-shirt/c.png")
    (tmp_path / "golden_retriever" / "notes.txt").write_text("no image")
    entries = list(scan_classes(tmp_path, "one {c}, that is a {c}"))
    assert [(entry.name, entry.label) for entry in entries] == [
        ("golden_retriever/a.PNG", "golden_retriever"),
        ("golden_retriever/b.png", "golden_retriever"),
        ("t-shirt/c.png", "t-shirt"),
    ]
    assert entries[0].captions == ("one golden retriever, that is a golden retriever",)
    assert entries[2].captions == ("one t-shirt, that is a t-shirt",)


def test_images_outside_the_class_folders_are_reported(tmp_path):
    write_images(tmp_path, "loose.png", "cat/a.png", "cat/deep/b.png")
    (tmp_path / "cat" / "empty.png").touch()
    faults = {entry.place: entry.fault for entry in scan_classes(tmp_path, "a {c}")}
    assert faults == {
        "`cat/a.png`": None,
        "`cat/deep/b.png`": "image outside the class folders",
        "`cat/empty.png`": "empty image file",
        "`loose.png`": "image outside the class folders",
    }


def test_an_empty_class_folder_is_reported(tmp_path):
    write_images(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "emu").mkdir()
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / ".DS_Store").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "about.txt").write_text("no class folder")
    *images, emu, fox = scan_classes(tmp_path, "a {c}")
    assert [entry.label for entry in images] == ["cat", "dog"]
    assert [(bad.place, bad.fault) for bad in (emu, fox)] == [
        ("`emu`", "class folder without images"),
        ("`fox`", "class folder without images"),
    ]


def test_linked_folders_are_followed_once(tmp_path):
    write_images(tmp_path / "set", "cat/a.png")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    write_images(tmp_path / "elsewhere", "b.png")
    (tmp_path / "set" / "cat" / "around").symlink_to(tmp_path / "set")
    assert list_images(tmp_path / "set") == ["cat/a.png", "dog/b.png"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    write_images(tmp_path, "cat/a.png", "dog/b.png")
    scan = os.scandir

    def refuse_dogs(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_dogs)
    with pytest.raises(OSError, match=r"dog` cannot be listed \(Permission denied\)"):
        list_images(tmp_path)


def test_file_name_that_is_not_valid_text_is_reported(tmp_path):
    name = os.fsdecode(b"\xff.png")
    try:
        (write_images(tmp_path, "cat/a.png") / "cat" / name).write_bytes(square())
    except OSError:
        pytest.skip("this file system takes text alone for a name")
    _, bad = index_in_memory(scan_classes(tmp_path, "a {c}"))
    assert (bad["place"], bad["fault"]) == (r"`cat/\udcff.png`", "image cannot be opened")


@pytest.mark.parametrize("size", [10, 3 * SAMPLE_BYTES, 50 * SAMPLE_BYTES])
def test_content_knows_size_beginning_middle_and_end(size):
    found = set()
    for changed in (None, 0, size // 2, size - 1):
        data = bytearray(size)
        if changed is not None:
            data[changed] = 1
        found.add(content_id(io.BytesIO(b"before" + data), size, offset=6))
        assert content_id(pyarrow.BufferReader(bytes(data)), size) in found
    found.add(content_id(io.BytesIO(bytes(size + 1)), size + 1))
    assert len(found) == 5


@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "PPM", "PNG", "JPEG", "WEBP"])
def test_content_knows_a_bar_drawn_anywhere(image_format):
    found = set()
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    for top in (None, *range(0, 64, 8)):
        changed = image.copy()
        if top is not None:
            changed.paste("black", (0, top, 64, top + 8))
        stream = io.BytesIO()
        changed.save(stream, image_format)
        found.add(content_id(stream, len(stream.getvalue())))
    assert len(found) == 9


def test_text_under_another_key_is_named_with_the_option_that_chooses_it(tmp_path):
    (tmp_path / "0.png").write_bytes(square())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "prompt": "a dog", "size": 3}')
    (entry,) = scan_folder(SplitFolder(tmp_path))
    assert (entry.fault, entry.found) == ("no caption", "text is in prompt; `caption_column` chooses one")
    (entry,) = scan_folder(SplitFolder(tmp_path), caption_key="prompt")
    assert entry.captions == ("a dog",)
