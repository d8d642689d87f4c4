"""shards.py: samples of tar archives as webdataset and img2dataset write them; images stay in the archive."""

import json

import datasets
import pytest

from palindiff.data.images import decode_image
from palindiff.data.index import check_rows
from palindiff.data.samples import SampleReading, read_class_names
from palindiff.data.shards import expand_pattern, index_tars, scan_tars
from palindiff.data.tables import load_parquet
from toys.sources import sample, square, write_tar

READING = SampleReading("a photo of a {c}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scan(path, members, reading=READING):
    return [entry.as_row() for entry in scan_tars([write_tar(path, members)], reading)]


def only_row(path, members, reading=READING):
    (row,) = scan(path, {"a.png": square(), **members}, reading)
    return row


def test_captions_are_the_lines_of_the_text(tmp_path):
    row = only_row(tmp_path / "0.tar", {"a.txt": b"ein Hund\r\n\n a dog \n"})
    assert (row["name"], row["captions"], row["label"]) == ("0.tar/a.png", ["ein Hund", "a dog"], None)


def test_caption_of_img2dataset_is_read_and_the_rest_of_its_json_kept(tmp_path):
    told = {"caption": "a dog", "url": "http://x/a.jpg", "width": 4, "error_message": None}
    row = only_row(tmp_path / "0.tar", {"a.json": json.dumps(told).encode()})
    assert (row["captions"], json.loads(row["fields"])) == (["a dog"], {"url": "http://x/a.jpg", "width": "4"})


@pytest.mark.parametrize(("key", "caption"), [(None, "of the text"), ("txt", "of the text"), ("alt", "of the JSON")])
def test_caption_key_chooses_between_text_and_json(key, caption, tmp_path):
    members = {"a.txt": b"of the text", "a.json": b'{"alt": "of the JSON"}'}
    assert only_row(tmp_path / "0.tar", members, SampleReading("{c}", key))["captions"] == [caption]


def test_class_number_becomes_its_name_and_a_caption_where_there_is_none(tmp_path):
    reading = SampleReading("a photo of a {c}", class_names=("cat", "dog_house"))
    captioned = only_row(tmp_path / "0.tar", {"a.cls": b"1\n", "a.txt": b"my house"}, reading)
    assert (captioned["label"], captioned["captions"]) == ("dog_house", ["my house"])
    assert only_row(tmp_path / "0.tar", {"a.cls": b"1"}, reading)["captions"] == ["a photo of a dog house"]
    assert only_row(tmp_path / "0.tar", {"a.cls": b"cat"})["captions"] == ["a photo of a cat"]


def test_classes_of_one_name_keep_their_numbers_as_labels(tmp_path):
    reading = SampleReading("a photo of a {c}", class_names=("crane", "cat", "crane"))
    for number, label, name in ((b"0", "0", "crane"), (b"1", "cat", "cat"), (b"02", "2", "crane")):
        row = only_row(tmp_path / "0.tar", {"a.cls": number}, reading)
        assert (row["label"], row["captions"]) == (label, [f"a photo of a {name}"])


def test_class_names_stand_beside_the_archives_or_above(tmp_path):
    tar = write_tar(tmp_path / "set" / "test" / "0.tar", sample("a", "red"))
    assert read_class_names(tar.parent) == ()
    (tmp_path / "set" / "classnames.txt").write_text("\ufeffcat\ndog\n\n", encoding="utf-8")
    assert read_class_names(tar.parent) == ("cat", "dog")


def test_sample_is_all_up_to_the_first_dot_in_its_folder(tmp_path):
    members = {"x/a.seg.txt": b"x", "x/a.png": square(), "y/a.png": square(), "y/a.txt": b"y", "._a.png": b"mac"}
    rows = scan(tmp_path / "0.tar", members)
    assert [(row["name"], row["captions"]) for row in rows] == [("0.tar/x/a.png", ["x"]), ("0.tar/y/a.png", ["y"])]


@pytest.mark.parametrize(
    ("members", "fault", "found"),
    [
        ({"b.txt": b"red"}, "no image", "only txt"),
        ({"b.png": square()}, "no caption", ""),
        ({"b.png": square(), "b.txt": b" \n"}, "empty caption", "only white space"),
        ({"b.png": square(), "b.txt": b""}, "empty caption", ""),
        ({"b.png": square(), "b.txt": b"\xff"}, "not UTF-8", "byte 0"),
        ({"b.png": square(), "b.json": b"{"}, "broken JSON", ""),
        ({"b.png": square(), "b.json": b'{"caption": null}'}, "no caption", ""),
        ({"b.png": square(), "b.cls": b"7"}, "no caption", "class 7 has no name: classnames.txt is missing"),
        ({"b.png": b"", "b.txt": b"red"}, "empty image file", "`b.png` has 0 bytes"),
        ({"b.png": square(), "b.jpg": square(), "b.txt": b"red"}, "several members of a kind", "png and jpg"),
        ({"b.png": square(), "b.2.png": square(), "b.txt": b"red"}, "several members of a kind", "png of one key"),
    ],
)
def test_bad_samples_are_reported_and_the_others_read(members, fault, found, tmp_path):
    rows = scan(tmp_path / "0.tar", {**sample("a", "red"), **members, **sample("c", "blue")})
    assert [row["fault"] for row in rows] == [None, fault, None]
    assert rows[1]["place"] == "`b` in 0.tar"
    assert found in rows[1]["found"]


def test_class_number_beyond_the_names_is_reported(tmp_path):
    row = only_row(tmp_path / "0.tar", {"a.cls": b"2"}, SampleReading("{c}", class_names=("cat", "dog")))
    assert (row["fault"], row["found"]) == ("class without a name", "number 2; classnames.txt has 2 lines")


@pytest.mark.parametrize("kept_bytes", [700, 1536 + 100, 2048 + 1100, 1536, 2048, 4096])
def test_truncated_archive_is_reported_wherever_it_is_cut(kept_bytes, tmp_path):
    """Within an image, a header and a text, and between members: `tarfile` itself is silent about the last four."""
    whole = write_tar(tmp_path / "whole.tar", {**sample("a", "red"), **sample("b", "blue")}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:kept_bytes])
    *_, last = scan_tars([tmp_path / "cut.tar"], READING)
    assert (last.place, last.fault) == ("`cut.tar`", "archive cannot be read")


def test_damaged_header_is_reported_and_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "0.tar", {**sample("a", "red"), **sample("b", "blue")})
    data = bytearray(path.read_bytes())
    data[2048 + 148 : 2048 + 156] = b"damaged!"  # the sum over the third member's header
    path.write_bytes(data)
    *_, last = scan_tars([path], READING)
    assert (last.fault, last.found[:23]) == ("archive cannot be read", "damaged at byte 2,048; ")


def test_unreadable_or_empty_archive_is_reported_and_the_next_read(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no archive at all" * 99)
    write_tar(tmp_path / "1.tar", {})
    write_tar(tmp_path / "2.tar", sample("a", "red"))
    entries = list(scan_tars([tmp_path / f"{number}.tar" for number in range(3)], READING))
    assert [entry.fault for entry in entries] == ["archive cannot be read", "archive without samples", None]


def test_images_are_read_from_their_place_in_the_archive(tmp_path):
    members = {**sample("a", "red", "red"), **sample("b", "blue", "blue")}
    tar = write_tar(tmp_path / "0.tar", members)
    rows = check_rows(index_tars([tar], READING), None, "the archive", "refuse")
    colours = [decode_image(row.source).getpixel((0, 0)) for row in rows]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    with rows[1].source.open() as stream:
        assert stream.read() == members["b.png"]


def test_index_is_kept_and_made_anew_when_an_archive_or_the_reading_changes(tmp_path):
    tar = write_tar(tmp_path / "0.tar", sample("a", "red"))
    files = [index_tars([tar], READING).cache_files for _ in range(2)]
    assert files[0] == files[1]
    assert str(tmp_path / "cache") in files[0][0]["filename"]
    assert index_tars([tar], SampleReading("{c}")).cache_files != files[0]
    write_tar(tar, sample("a", "blue") | sample("b", "green"))
    assert index_tars([tar], READING)["captions"][:] == [["blue"], ["green"]]


def test_pattern_names_every_archive_in_order(tmp_path):
    for number in range(9, 12):
        write_tar(tmp_path / f"a-{number:03}.tar", {})
    found = expand_pattern(f"{tmp_path}/a-{{009..011}}.tar")
    assert [path.name for path in found] == ["a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_pattern(f"{tmp_path}/*.tar") == found
    assert expand_pattern(f"{tmp_path}/a-{{011,0*}}.tar") == [found[2], found[0], found[1]]  # each once
    assert expand_pattern(f"{tmp_path}/{{a,a}}-0{{1}}{{0..1}}.tar") == found[1:]
    with pytest.raises(FileNotFoundError, match=r"a-012\.tar` of the pattern .* does not exist"):
        expand_pattern(f"{tmp_path}/a-{{009..012}}.tar")


def test_keys_with_dots_are_keys_of_their_own(tmp_path):
    members = {f"v1.{number}.{kind}": square() if kind == "png" else f"text {number}".encode()
               for number in (0, 1) for kind in ("png", "txt")}  # fmt: skip
    rows = scan(tmp_path / "0.tar", members)
    assert [(row["name"], row["captions"], row["fault"]) for row in rows] == [
        ("0.tar/v1.0.png", ["text 0"], None), ("0.tar/v1.1.png", ["text 1"], None)
    ]  # fmt: skip


def test_an_empty_text_does_not_hide_the_caption_of_the_json(tmp_path):
    row = only_row(tmp_path / "0.tar", {"a.txt": b" \n", "a.json": b'{"caption": "a dog"}'})
    assert row["captions"] == ["a dog"]
    row = only_row(tmp_path / "1.tar", {"a.txt": b"", "a.json": b"{}"})
    assert row["fault"] == "empty caption"
    row = only_row(tmp_path / "2.tar", {"a.txt": b"", "a.json": b'{"caption": "a dog"}'}, SampleReading("{c}", "txt"))
    assert row["fault"] == "empty caption"


def test_text_under_another_key_is_named_with_the_option(tmp_path):
    row = only_row(tmp_path / "0.tar", {"a.json": b'{"prompt": "a dog", "width": 4}'})
    assert (row["fault"], row["found"]) == ("no caption", "text is in prompt; `caption_column` chooses one")


def test_an_index_that_cannot_be_written_names_the_setting(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    tar = write_tar(tmp_path / "0.tar", sample("a", "red"))
    with pytest.raises(OSError, match=r"The index of the images cannot be written .*HF_DATASETS_CACHE\.$"):
        index_tars([tar], READING)
    with pytest.raises(OSError, match=r"The index of the images cannot be written"):
        load_parquet([tmp_path / "0.parquet"])
