"""scripts/bundle_vendor_images.py: which images are taken, what is written with them, and what is refused."""

import json

import pytest
from PIL import Image

from palindiff.experiments.bundled_vendor import bundled_vendor_images
from toys.by_path import load_by_path
from toys.emoji import write_emoji_set, write_vendor

bundling = load_by_path("scripts/bundle_vendor_images.py")


def rows(number):
    """Seen concepts, and after each an unseen one; the last is a flag."""
    found = [
        {"file_name": f"emojione/{i}.png", "captions": [f"an emoji of {i}", f"{i}"], "style": "emojione",
         "label": f"concept {i}", "is_representative": True, "concept_split": ("train", "test")[i % 2],
         "license": "Emoji One, CC-BY-4.0"}
        for i in range(2 * number)
    ]  # fmt: skip
    return [*found, found[0] | {"captions": ["an emoji of the flag of Chad"], "label": "Chad"}]


def drawn_set(folder, number=30, side=96):
    write_vendor(write_emoji_set(folder), rows(number))
    for path in (folder / "vendor" / "emojione").iterdir():
        Image.open(path).resize((side, side)).save(path)
    return folder


def test_seen_concepts_are_taken_by_the_hash_of_their_names(tmp_path):
    target = bundling.bundle_vendor_images(drawn_set(tmp_path / "set"), tmp_path / "images")
    found = bundled_vendor_images(target)
    labels = [row.label for row in found]
    assert len(set(labels)) == 24
    assert {int(label.split()[1]) % 2 for label in labels} == {0}  # unseen concepts and the flag are left out
    more = bundling.bundle_vendor_images(drawn_set(tmp_path / "more", 40), tmp_path / "others")
    kept = [row.label for row in bundled_vendor_images(more) if int(row.label.split()[1]) < 60]
    assert kept == [label for label in labels if label in kept]  # further concepts change no order
    lines = (target / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0]).keys() == {"file_name", "captions", "label"}
    assert (target / "ATTRIBUTION.txt").read_text().splitlines() == [
        "Emoji One, CC-BY-4.0",
        "Licence: https://creativecommons.org/licenses/by/4.0/. Changes: rendered from SVG to PNG of 96 pixels.",
    ]


def test_a_later_call_replaces_the_images(tmp_path):
    folder = drawn_set(tmp_path / "set")
    target = bundling.bundle_vendor_images(folder, tmp_path / "images")
    (target / "old.png").write_bytes(b"")
    assert not (bundling.bundle_vendor_images(folder, target) / "old.png").exists()


def test_what_cannot_be_bundled_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no split `vendor`"):
        bundling.bundle_vendor_images(write_emoji_set(tmp_path / "two styles"), tmp_path / "images")
    with pytest.raises(ValueError, match=r"has 10 images of emojione to choose from. Expected 24"):
        bundling.bundle_vendor_images(drawn_set(tmp_path / "few", 10), tmp_path / "images")
    with pytest.raises(ValueError, match=r"are 64 x 64 pixels. Expected a side of 72 or 96"):
        bundling.bundle_vendor_images(drawn_set(tmp_path / "small", side=64), tmp_path / "images")
    monkeypatch.setattr(bundling, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="Expected at most 1,000"):
        bundling.bundle_vendor_images(drawn_set(tmp_path / "set"), tmp_path / "images")
    assert not (tmp_path / "images").exists()
