"""icon_sets.py: packages as Iconify writes them, aliases by hand, licences, and damaged files."""

import json

import numpy as np
import pytest

from palindiff.data import icon_sets
from palindiff.data.icon_sets import find_icon_sets, read_icon_set, read_info
from palindiff.data.svg import draw_svg
from toys.icon_sets import DOT, write_package

pytest.importorskip("resvg_py", reason="needs the extra `emoji`")

COLOURS = ["red", "lime", "blue", "black"]
QUARTERS = "".join(
    f'<path fill="{colour}" d="M{10 + 2 * (i % 2)} {20 + i // 2}h2v1h-2z"/>' for i, colour in enumerate(COLOURS)
)
BOX = {"body": QUARTERS, "left": 10, "top": 20, "width": 4, "height": 2}  # 2 x 2 fields, each 2 wide and 1 high
FIELDS = np.array([[0, 1], [2, 3]])  # red, lime; blue, black


def read(folder):
    return read_icon_set(read_info(folder))


def icon_called(folder, name):
    return read(folder).by_name[name]


def fields_of(icon):
    """Draw an icon and read which colour each of its four fields has."""
    image = draw_svg(icon.svg.encode(), 16)
    wide = icon.quarter_turns % 2 == 0
    across, down = ((4, 12), (6, 10)) if wide else ((6, 10), (4, 12))  # the box is padded to a square
    known = {(255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2, (0, 0, 0): 3}
    return np.array([[known[image.getpixel((x, y))] for x in across] for y in down])


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, -1])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
def test_an_alias_mirrors_then_turns_clockwise(turns, mirrored, upside_down, tmp_path):
    alias = {"parent": "quarters", "rotate": turns, "hFlip": mirrored, "vFlip": upside_down}
    folder = write_package(tmp_path / "set", icons={"quarters": BOX}, aliases={"turned": alias})
    expected = FIELDS
    expected = np.fliplr(expected) if mirrored else expected
    expected = np.flipud(expected) if upside_down else expected
    assert (fields_of(icon_called(folder, "turned")) == np.rot90(expected, -turns)).all()
    assert (fields_of(icon_called(folder, "quarters")) == FIELDS).all()


def test_turns_of_an_icon_and_a_row_of_aliases_add_up_and_mirroring_cancels(tmp_path):
    aliases = {
        "a": {"parent": "quarters", "rotate": 1, "hFlip": True},
        "b": {"parent": "a", "rotate": 2, "hFlip": True, "vFlip": True},
    }
    folder = write_package(tmp_path / "set", icons={"quarters": BOX | {"rotate": 3}}, aliases=aliases)
    icon = icon_called(folder, "b")
    assert (icon.quarter_turns, icon.is_mirrored, icon.is_upside_down) == (2, False, True)  # 3 + 1 + 2 turns
    assert (fields_of(icon) == np.rot90(np.flipud(FIELDS), -2)).all()


def test_a_plain_alias_is_a_further_name_and_a_turned_one_an_icon_of_its_own(tmp_path):
    aliases = {
        "same": {"parent": "arrow"},
        "same-again": {"parent": "same"},
        "back": {"parent": "arrow", "hFlip": True},
        "back-too": {"parent": "back"},
        "half": {"parent": "arrow", "width": 8},
    }
    icons = read(write_package(tmp_path / "set", icons=["arrow"], aliases=aliases)).icons
    assert [icon.names for icon in icons] == [("arrow", "same", "same-again"), ("back", "back-too"), ("half",)]
    assert {icon.parent for icon in icons} == {"arrow"}
    assert [icon.box for icon in icons] == [(0, 0, 16, 16), (0, 0, 16, 16), (0, 0, 8, 16)]


def test_an_icon_takes_what_it_does_not_state_from_the_set(tmp_path):
    icons = {"plain": {}, "wide": {"width": 40, "hidden": True}}
    folder = write_package(tmp_path / "set", icons=icons, width=20, height=10, left=-2, top=1)
    plain, wide = read(folder).icons
    assert (plain.box, plain.is_hidden) == ((-2, 1, 20, 10), False)
    assert (wide.box, wide.is_hidden) == ((-2, 1, 40, 10), True)
    assert 'viewBox="0 0 40 10"' in wide.svg
    assert "translate(2 -1)" in wide.svg


def test_code_points_names_and_variants_are_read(tmp_path):
    metadata = {"suffixes": {"": "Regular", "bold": "Bold"}, "prefixes": {"round": "Round"}, "categories": {}}
    folder = write_package(tmp_path / "set", characters={"1f44c": "ok-hand", "0023-20e3": "hash"}, metadata=metadata)
    icons = read(folder)
    assert icons.characters == {(0x1F44C,): "ok-hand", (0x23, 0x20E3): "hash"}
    assert (icons.prefixes, icons.suffixes) == (("round",), ("bold",))


def test_author_licence_and_package_are_the_credit(tmp_path):
    info = read_info(write_package(tmp_path / "set"))
    assert info.credit == "noto icons, A. Drawer, MIT (package @iconify-json/noto 1.2.3)"
    (tmp_path / "set" / "package.json").unlink()
    assert read_info(tmp_path / "set").package == "set"


@pytest.mark.parametrize(
    "license",
    ["CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-3.0-US", "CC-BY-SA-2.5", "CC-BY-SA-4.0", "MIT", "Apache-2.0",
     "OFL-1.0", "OFL-1.1", "OFL-1.1-no-RFN"],
)  # fmt: skip
def test_a_licence_that_allows_sharing_is_read(license, tmp_path):
    assert read(write_package(tmp_path / "set", license=license)).info.license == license


@pytest.mark.parametrize(
    "license", ["CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-SA-4.0", "GPL-3.0", "GPL-2.0-or-later", "ISC", "", "MITx",
                "MIT OR GPL-3.0", "LicenseRef-OFL-1.1"]
)  # fmt: skip
def test_another_licence_is_refused_in_a_sentence(license, tmp_path):
    folder = write_package(tmp_path / "set", license=license)
    with pytest.raises(
        ValueError, match=rf"^`{folder}` has the licence `{license}` in info.json. Expected CC0, CC BY"
    ):
        read(folder)


def test_a_licence_without_spdx_name_is_refused_by_its_title(tmp_path):
    folder = write_package(tmp_path / "set")
    info = json.loads((folder / "info.json").read_text()) | {"license": {"title": "Free for all"}}
    (folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="has the licence `Free for all`"):
        read(folder)


def test_a_folder_is_a_set_or_holds_several(tmp_path):
    for prefix in ("noto", "emojione"):
        write_package(tmp_path / "sets" / f"of-{prefix}", prefix)
    (tmp_path / "sets" / "empty").mkdir()
    assert [info.prefix for info in find_icon_sets(tmp_path / "sets")] == ["emojione", "noto"]
    (info,) = find_icon_sets(tmp_path / "sets" / "of-noto")
    assert (info.prefix, info.folder) == ("noto", tmp_path / "sets" / "of-noto")


@pytest.mark.parametrize(("name", "found"), [("empty", "holds no icons.json"), ("nowhere", "is not a folder")])
def test_a_folder_without_icons_is_refused_with_the_way_to_get_some(name, found, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}` {found}.*npm install @iconify-json/noto"):
        find_icon_sets(tmp_path / name)


def icons_json(**changed):
    return json.dumps({"prefix": "noto", "icons": {"a": {"body": DOT}}} | changed).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "Invalid JSON: EOF"),
        (b'{"prefix": "noto", "icons": {"a": {"body": "<pa', "Invalid JSON: EOF"),
        (b"[" * 100_000, "Invalid JSON: recursion limit"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b'{"prefix": "noto"}', "icons: Field required"),
        (icons_json(icons={"a": {}}), "icons > a > body: Field required"),
        (icons_json(icons={"a": {"body": 1}}), "icons > a > body: Input should be a valid string"),
        (icons_json(icons={"../../a": {"body": DOT}}), "String should match pattern"),
        (icons_json(icons={"x" * 999: {"body": DOT}}), "at most 200 characters"),
        (icons_json(width=0), "width: Input should be greater than"),
        (icons_json(width=1e9), "width: Input should be less than"),
        (icons_json(height="tall"), "height: Input should be a valid number"),
        (b'{"prefix": "noto", "icons": {}, "width": NaN}', "width"),
        (icons_json(aliases={"b": {"parent": "missing"}}), "the alias `b` leads to no icon within 8 steps"),
        (icons_json(aliases={"b": {"parent": "c"}, "c": {"parent": "b"}}), "the alias `b` leads to no icon"),
        (icons_json(prefix="other"), "has the prefix `other`, and info.json beside it `noto`"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(data, sentence, tmp_path):
    file = write_package(tmp_path / "set") / "icons.json"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"^`{file}` ") as caught:
        read(tmp_path / "set")
    message = str(caught.value)
    assert sentence in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    assert "Install the package again." in message


@pytest.mark.parametrize("name", ["info.json", "chars.json", "metadata.json", "package.json"])
def test_other_damaged_files_are_named_too(name, tmp_path):
    file = write_package(tmp_path / "set") / name
    file.write_text('{"a": ["b"')
    with pytest.raises(ValueError, match=f"^`{file}` is damaged: Invalid JSON"):
        read(tmp_path / "set")


@pytest.mark.parametrize("name", ["icons.json", "info.json"])
def test_a_missing_file_is_named(name, tmp_path):
    file = write_package(tmp_path / "set") / name
    info = read_info(tmp_path / "set")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"^`{file}` does not exist"):
        read_icon_set(info) if name == "icons.json" else read_info(tmp_path / "set")


@pytest.mark.parametrize(("limit", "name"), [("MAX_ICONS_BYTES", "icons.json"), ("MAX_FILE_BYTES", "info.json")])
def test_a_huge_file_is_not_read(limit, name, tmp_path, monkeypatch):
    file = write_package(tmp_path / "set") / name
    monkeypatch.setattr(icon_sets, limit, 20)
    with pytest.raises(ValueError, match=rf"^`{file}` is larger than 20 bytes"):
        read(tmp_path / "set")


def test_too_many_icons_are_refused(tmp_path, monkeypatch):
    write_package(tmp_path / "set", icons=["a", "b"], aliases={"c": {"parent": "a"}})
    monkeypatch.setattr(icon_sets, "MAX_ICONS", 2)
    with pytest.raises(ValueError, match=r"has 3 icons\. Expected 2 at most"):
        read(tmp_path / "set")


def test_a_title_of_several_lines_is_refused(tmp_path):
    """It would forge lines of ATTRIBUTION.txt."""
    folder = write_package(tmp_path / "set")
    info = json.loads((folder / "info.json").read_text()) | {"name": "a\nflat: mine"}
    (folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="is damaged: name: String should match pattern"):
        read(folder)
