"""scripts/gallery.py: sheets of fixed seeds, and a page that is one of docs/."""

import re

import numpy as np
import pytest
from PIL import Image

from palindiff.evaluation.sheets import contact_sheet
from palindiff.experiments import shown_captions
from palindiff.inference.generation import generate_images
from toys.by_path import load_by_path
from toys.emoji import write_emoji_set
from toys.models import toy_pipeline

gallery = load_by_path("scripts/gallery.py")


@pytest.fixture
def pipeline(encoder_folder):
    return toy_pipeline(encoder_folder)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "NUM_CAPTIONS", 4)
    monkeypatch.setattr(shown_captions, "FREE_WORDING", ("a red a", "a b"))
    return write_emoji_set(tmp_path / "set")


def test_a_sheet_of_each_group_is_written_and_described(pipeline, data, tmp_path):
    page = gallery.write_gallery(pipeline, "toy", data, tmp_path / "docs")
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert links == [
        ("Concepts in training", "gallery/seen.png"),
        ("Known concepts in a new style", "gallery/composition.png"),
        ("Concepts not in training", "gallery/unseen.png"),
        ("Free wording", "gallery/free.png"),
    ]
    assert {path.name for path in (tmp_path / "docs" / "gallery").iterdir()} == {link[8:] for _, link in links}
    assert re.findall(r"Seeds (\d+) to (\d+)", text) == [("0", "3"), ("4", "7"), ("8", "11"), ("12", "13")]
    assert "python scripts/gallery.py --data data/emoji --model toy" in text
    assert "at guidance scale 4 with 30 DDIM steps" in " ".join(text.split())
    assert text.split("\n\n", 2)[1].startswith("After reading this page you ")  # as every page of docs/


def test_a_sheet_is_what_the_model_generates_from_its_seeds(pipeline, data, tmp_path):
    gallery.write_gallery(pipeline, "toy", data, tmp_path / "docs")
    captions = shown_captions.shown_captions(data, 4)["composition"]
    images = generate_images(pipeline, captions, range(4, 8))
    expected = contact_sheet(images, captions, gallery.COLUMNS, gallery.MIN_CELL_PX).quantize(gallery.COLOURS)
    written = Image.open(tmp_path / "docs" / "gallery" / "composition.png")
    assert np.array_equal(np.asarray(written.convert("RGB")), np.asarray(expected.convert("RGB")))


def test_a_sheet_that_is_too_large_is_refused(pipeline, data, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"seen.png` has .* bytes. Expected at most 100"):
        gallery.write_gallery(pipeline, "toy", data, tmp_path / "docs")
