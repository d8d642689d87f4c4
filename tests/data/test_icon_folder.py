"""icon_folder.py: any icon set as captioned images, split by name."""

import json
from collections import Counter

import pytest
from PIL import Image

from palindiff.data.icon_folder import SPLIT_SHARES, base_name, build_icon_folder, split_of
from palindiff.data.icon_sets import find_icon_sets, read_icon_set, read_info
from palindiff.data.sources import DataConfig, open_images
from toys.icon_sets import write_package

pytest.importorskip("resvg_py", reason="needs the extra `emoji`")

NAMES = [f"icon-{number}" for number in range(40)]


def build(folder, output, **options):
    return build_icon_folder(output, find_icon_sets(folder), 16, **options)


def rows_of(output):
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in output.glob("*/metadata.jsonl")
    }


def test_icons_become_captioned_images_that_are_read_as_any_folder(tmp_path):
    write_package(tmp_path / "mdi", "mdi", NAMES, license="OFL-1.1")
    report = build(tmp_path / "mdi", tmp_path / "set")
    assert report.not_drawn == {"mdi": {}}
    found = {}
    for split, of_split in report.counts.items():
        rows = open_images(DataConfig(path=str(tmp_path / "set"), split=split, check_images=True))
        assert len(rows) == of_split["mdi"]
        found |= {row.captions[0]: (split, row) for row in rows}
    assert set(found) == {name.replace("-", " ") for name in NAMES}
    for name in NAMES:
        split, row = found[name.replace("-", " ")]
        assert split == split_of(name)
        assert row.fields == {
            "style": "mdi",
            "license": "mdi icons, A. Drawer, OFL-1.1 (package @iconify-json/mdi 1.2.3)",
        }
    assert (tmp_path / "set" / "ATTRIBUTION.txt").read_text().startswith("mdi: mdi icons, A. Drawer, OFL-1.1 ")


def test_monochrome_icons_are_black_on_white(tmp_path):
    write_package(tmp_path / "mdi", "mdi", ["dot"])
    build(tmp_path / "mdi", tmp_path / "set")
    (path,) = (tmp_path / "set").rglob("*.png")
    image = Image.open(path)
    assert (image.size, image.getpixel((2, 8)), image.getpixel((12, 8))) == ((16, 16), (0, 0, 0), (255, 255, 255))


def test_shares_of_the_splits():
    counts = Counter(split_of(f"name {number}") for number in range(4000))
    for split, share in SPLIT_SHARES.items():
        assert counts[split] / 4000 == pytest.approx(share, abs=0.02)  # four standard deviations


def test_further_names_are_captions_and_turned_copies_share_the_split(tmp_path):
    aliases = {name: {"parent": "arrow"} for name in ("pointer", "sign-post")}
    aliases |= {f"arrow-{turns}": {"parent": "arrow", "rotate": turns} for turns in (1, 2, 3)}
    write_package(tmp_path / "mdi", "mdi", ["arrow"], aliases=aliases)
    build(tmp_path / "mdi", tmp_path / "set")
    ((split, rows),) = rows_of(tmp_path / "set").items()
    assert split == split_of("arrow")
    assert [row["captions"] for row in rows] == [
        ["arrow", "pointer", "sign post"],
        ["arrow 1"],
        ["arrow 2"],
        ["arrow 3"],
    ]
    assert {row["label"] for row in rows} == {"arrow"}


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("acorn", "acorn"),
        ("acorn-bold", "acorn"),
        ("acorn-extra-bold", "acorn"),
        ("round-acorn-bold", "acorn"),
        ("bold", "bold"),
        ("acornbold", "acornbold"),
    ],
)
def test_variants_that_a_set_declares_share_a_base_name(name, base, tmp_path):
    metadata = {"suffixes": {"": "Regular", "bold": "Bold", "extra-bold": "Extra"}, "prefixes": {"round": "Round"}}
    icons = read_icon_set(read_info(write_package(tmp_path / "set", "ph", [name], metadata=metadata)))
    assert base_name(icons.icons[0], icons) == base


def test_hidden_and_harmful_icons_are_counted_and_left_out(tmp_path):
    icons = {"a": {}, "b": {"hidden": True}, "c": {"body": '<image href="/etc/passwd"/>'}, "d": {"body": "<path"}}
    write_package(tmp_path / "mdi", "mdi", icons)
    report = build(tmp_path / "mdi", tmp_path / "set")
    assert report.not_drawn == {"mdi": {"hidden": 1, "element image": 1, "broken XML": 1}}
    assert len(list((tmp_path / "set").rglob("*.png"))) == 1


def test_a_folder_of_sets_is_one_set_with_a_style_for_each(tmp_path):
    for prefix in ("mdi", "ph"):
        write_package(tmp_path / "sets" / prefix, prefix, NAMES[:3])
    report = build(tmp_path / "sets", tmp_path / "set")
    assert sum(of_split["mdi"] for of_split in report.counts.values()) == 3
    assert {row["file_name"] for rows in rows_of(tmp_path / "set").values() for row in rows} == {
        f"{prefix}/{name}.png" for prefix in ("mdi", "ph") for name in NAMES[:3]
    }


@pytest.mark.parametrize(
    ("icons", "more", "sentence"),
    [
        (["a"], {"license": "CC-BY-NC-4.0"}, "has the licence `CC-BY-NC-4.0`"),
        ({"a": {"hidden": True}}, {}, "has no icon that can be drawn"),
        ({}, {}, "has no icon that can be drawn"),
        (["a"], {"width": -1}, "is damaged: width"),
    ],
)
def test_an_error_leaves_nothing_behind(icons, more, sentence, tmp_path):
    write_package(tmp_path / "mdi", "mdi", icons, **more)
    with pytest.raises(ValueError, match=sentence):
        build(tmp_path / "mdi", tmp_path / "out" / "set")
    assert not list((tmp_path / "out").glob("*"))


def test_two_sets_of_one_prefix_are_refused(tmp_path):
    for name in ("a", "b"):
        write_package(tmp_path / "sets" / name, "mdi")
    with pytest.raises(ValueError, match="Two packages have the prefix `mdi`"):
        build(tmp_path / "sets", tmp_path / "set")
