"""bundled_vendor.py: the bundled images are complete, credited, and of concepts that training knows."""

import json

from palindiff.data.images import decode_image
from palindiff.experiments.bundled_vendor import VENDOR_IMAGES, bundled_vendor_images, image_credits
from palindiff.pretrained.bundled import bundled_folder


def test_the_images_have_captions_and_labels_of_trained_concepts():
    rows = bundled_vendor_images()
    known = json.loads((bundled_folder("emoji") / "vocabulary.json").read_text(encoding="utf-8"))["labels"]
    assert len({row.label for row in rows}) == len(rows) == 24
    assert {row.label for row in rows} <= set(known)
    assert all(row.captions[0].startswith("an emoji of ") for row in rows)
    assert not [row for row in rows if "the flag of" in row.captions[0]]
    assert {decode_image(row.source).size for row in rows} == {(96, 96)}


def test_the_folder_is_small_and_names_author_and_licence():
    files = list(VENDOR_IMAGES.iterdir())
    assert len(files) == 24 + 2
    assert sum(path.stat().st_size for path in files) <= 150_000
    text = (VENDOR_IMAGES / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert "Emoji One" in text
    assert "https://creativecommons.org/licenses/by/4.0/" in text


def test_credits_are_those_of_the_set_and_of_the_bundled_images(tmp_path):
    assert [credit.partition(",")[0] for credit in image_credits(tmp_path)] == [
        "Twemoji", "OpenMoji", "Emoji One (Colored)"
    ]  # fmt: skip
    (tmp_path / "ATTRIBUTION.txt").write_text("flat: Twemoji\nnoto: Google\n")
    assert image_credits(tmp_path)[:2] == ["flat: Twemoji", "noto: Google"]
