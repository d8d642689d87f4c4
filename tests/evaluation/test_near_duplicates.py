"""near_duplicates.py: the most similar pairs by hand, mirror images, and groups of a split."""

import numpy as np
import pytest
import torch
from PIL import Image

from palindiff.evaluation import controls
from palindiff.evaluation.near_duplicates import nearest, similar_pairs
from palindiff.evaluation.thumbnails import thumbnail_scores
from toys.sources import write_lines


def noise_images(number, seed):
    return np.random.default_rng(seed).integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)


def write_split(root, split, images, **fields):
    rows = [
        {"file_name": f"{i}.png", "caption": f"{split} {i}", "label": f"{split} {i}", "style": "flat"}
        | {key: values[i] for key, values in fields.items()}
        for i in range(len(images))
    ]
    write_lines(root / split, rows)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / split / f"{i}.png")


@pytest.fixture
def data(tmp_path):
    """Twelve training images; a test image is a copy of the third, another the mirror image of the fifth."""
    train, other = noise_images(12, seed=0), noise_images(1, seed=1)
    write_split(tmp_path, "train", train)
    write_split(tmp_path, "test", [other[0], train[4][:, ::-1], train[2]])
    return tmp_path


def test_copies_and_mirror_images_come_first(data):
    pairs = similar_pairs(data)["test"]
    assert {pair["image"] for pair in pairs[:2]} == {"test/1.png", "test/2.png"}
    by_image = {pair["image"]: pair for pair in pairs}
    assert by_image["test/2.png"] == {
        "similarity": 1.0, "is_mirrored": False, "image": "test/2.png", "style": "flat", "label": "test 2",
        "training_image": "train/2.png", "training_style": "flat", "training_label": "train 2",
    }  # fmt: skip
    assert by_image["test/1.png"]["training_image"] == "train/4.png"
    assert (by_image["test/1.png"]["is_mirrored"], by_image["test/1.png"]["similarity"]) == (True, 1.0)
    assert pairs[2]["similarity"] < 0.5  # noise


def test_similarities_are_thumbnail_scores_of_the_image_or_its_mirror_image():
    images = torch.from_numpy(noise_images(20, seed=2)).permute(0, 3, 1, 2) / 127.5 - 1
    test, train = images[:8], images[8:]
    values, rows, is_mirrored = nearest(test.flatten(1), train.flatten(1))
    plain, mirrored = thumbnail_scores(test, train), thumbnail_scores(test.flip(3), train)
    expected = torch.maximum(plain, mirrored).max(dim=1)
    assert torch.allclose(values.double(), expected.values, atol=1e-6)  # float32 sums of 768 terms
    assert torch.equal(rows, expected.indices)
    assert torch.equal(is_mirrored, mirrored.max(dim=1).values > plain.max(dim=1).values)


def test_parts_do_not_change_the_result(monkeypatch):
    features = torch.from_numpy(noise_images(20, seed=3)).float().flatten(1)
    whole = nearest(features[:9], features[9:])
    monkeypatch.setattr(controls, "SCORES_AT_ONCE", 1)
    parts = nearest(features[:9], features[9:])
    assert torch.allclose(parts[0], whole[0], atol=1e-6)  # products of other shapes round differently
    assert torch.equal(parts[1], whole[1])
    assert torch.equal(parts[2], whole[2])


def test_a_split_of_seen_and_unseen_concepts_is_two_groups(data):
    write_split(data, "vendor", noise_images(4, seed=4), concept_split=["train", "test", "train", "validation"])
    found = similar_pairs(data, num_pairs=1)
    assert list(found) == ["test", "vendor_seen", "vendor_unseen"]  # there is no validation
    assert [len(pairs) for pairs in found.values()] == [1, 1, 1]
    assert found["vendor_seen"][0]["image"] in {"vendor/0.png", "vendor/2.png"}


def test_images_smaller_than_a_thumbnail_are_compared_as_they_are(tmp_path):
    train = noise_images(3, seed=5)[:, :8, :8]
    write_split(tmp_path, "train", train)
    write_split(tmp_path, "test", train[1:2])
    assert similar_pairs(tmp_path)["test"][0]["training_image"] == "train/1.png"
