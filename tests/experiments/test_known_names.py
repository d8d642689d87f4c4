"""known_names.py: images are named among all concepts of training, and among ten of their neighbours."""

import pytest
import torch

from palindiff.data.rows import CaptionedImage
from palindiff.experiments.emoji_subsets import concept_images, vendor_images
from palindiff.experiments.known_names import NamedImages, name_among_all, seen_images


def test_the_names_are_all_concepts_of_training_without_flags_and_the_images_own(model, vendor_dir):
    (vendor,) = vendor_images(vendor_dir).values()
    unknown = CaptionedImage(vendor[0].source, ("an emoji of a yak",), "yak")
    seen, of_vendor = name_among_all(model.pipeline, vendor_dir, [seen_images(vendor_dir), [*vendor, unknown]])
    names = [row.captions[0] for row in concept_images(vendor_dir, "train", "flat")]
    assert seen.names == of_vendor.names == [*names, "a yak"]
    assert [of_vendor.names[i] for i in of_vendor.right] == [*names[:3], "a yak"]
    e = model.pipeline.encode_text([f"an emoji of {name}" for name in seen.names])
    e_0_hat = model.pipeline.encode_image([row.source for row in of_vendor.rows])
    assert torch.allclose(of_vendor.scores, e_0_hat @ e.T, atol=1e-5)  # another batch


def test_an_image_without_a_label_is_refused(model, emoji_dir):
    row = concept_images(emoji_dir, "train", "flat")[0]
    with pytest.raises(ValueError, match=r"flat/0.png` has no label in `name_among_all`"):
        name_among_all(model.pipeline, emoji_dir, [[CaptionedImage(row.source, row.captions)]])


def test_the_right_name_is_first_among_all_or_among_few(monkeypatch):
    monkeypatch.setattr("palindiff.experiments.known_names.NUM_CHOICES", 2)
    scores = torch.tensor([[0.5, 0.9, 0.1, 0.0], [0.2, 0.6, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    named = NamedImages([None] * 3, ["a", "b", "c", "d"], scores, torch.tensor([0, 1, 2]))
    assert named.is_first.tolist() == [False, False, False]
    # each with the next: a or b (b wins), b or c (c wins), c or a (c wins)
    assert named.is_first_of_few.tolist() == [False, False, True]


def test_more_choices_than_images_are_all_of_them():
    scores = torch.eye(3)
    named = NamedImages([None] * 3, ["a", "b", "c"], scores, torch.arange(3))
    assert named.is_first_of_few.tolist() == named.is_first.tolist() == [True] * 3
