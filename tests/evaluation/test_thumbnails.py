"""generations.py: thumbnails by hand, scores against a plain cosine, recall known beforehand, and what is refused."""

import math

import pytest
import torch

from palindiff.evaluation.thumbnails import thumbnail_recall, thumbnail_scores, thumbnails


def make_images(n=12, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_thumbnail_is_the_mean_of_each_quarter_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0] = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.5, -1, -1], [0.5, 0.5, -1, 0]])
    image[0, 2, :, 2:] = 1
    assert thumbnails(image, side=2).tolist() == [[0.25, 0, 0.5, -0.75, 0, 0, 0, 0, 0, 1, 0, 1]]


def test_thumbnail_shares_a_pixel_between_two_areas_by_hand():
    """Three pixels in two areas: the middle one is halved."""
    image = torch.tensor([1.0, -1.0, 0.4]).expand(1, 3, 3, 3)
    left, right = (1 - 0.5) / 1.5, (-0.5 + 0.4) / 1.5
    assert thumbnails(image, side=2)[0].tolist() == pytest.approx([left, right] * 6, abs=1e-6)  # float32


@pytest.mark.parametrize("size", [16, 20, 37])
def test_thumbnail_keeps_the_mean_colour(size):
    images = make_images(size=size)
    mean = thumbnails(images).unflatten(1, (3, 256)).mean(dim=2)  # (n, 3*16*16) -> (n, 3)
    torch.testing.assert_close(mean, images.mean(dim=(2, 3)), atol=1e-6, rtol=0)  # float32 means of 1,369 pixels


def test_thumbnail_of_an_image_of_that_size_is_the_image():
    images = make_images(size=16)
    assert torch.equal(thumbnails(images), images.flatten(1))


def test_scores_equal_a_plain_cosine_after_subtracting_the_real_mean():
    generations, real = make_images(3, seed=1), make_images(5, size=48)
    small, small_real = thumbnails(generations).tolist(), thumbnails(real).tolist()
    mean = [sum(column) / 5 for column in zip(*small_real, strict=True)]
    for i, j in ((0, 0), (2, 4), (1, 3)):
        a = [value - m for value, m in zip(small[i], mean, strict=True)]
        b = [value - m for value, m in zip(small_real[j], mean, strict=True)]
        by_hand = math.sumprod(a, b) if hasattr(math, "sumprod") else sum(u * v for u, v in zip(a, b, strict=True))
        by_hand /= math.hypot(*a) * math.hypot(*b)
        assert thumbnail_scores(generations, real)[i, j].item() == pytest.approx(by_hand, abs=1e-12)  # float64


def test_scores_of_a_generation_ignore_the_other_generations():
    generations, real = make_images(6, seed=1), make_images()
    alone = torch.cat([thumbnail_scores(generation[None], real) for generation in generations])
    torch.testing.assert_close(thumbnail_scores(generations, real), alone, atol=1e-12, rtol=0)  # float64 sums


def test_scores_ignore_the_order_of_real_images():
    generations, real = make_images(6, seed=1), make_images()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    scores = thumbnail_scores(generations, real)
    torch.testing.assert_close(thumbnail_scores(generations, real[order]), scores[:, order], atol=1e-12, rtol=0)


def test_recall_is_whole_for_the_real_images_themselves():
    real = make_images(40)
    target = torch.arange(40).flip(0)
    for row in thumbnail_recall(real[target], target, real, [1, 4]):
        assert (row["direction"], row["recall"], row["n"]) == ("caption_to_generated", 1.0, 40)
        assert row["chance"] == pytest.approx(row["k"] / 40)
        deviation = (row["chance"] * (1 - row["chance"]) / (40 * 20)) ** 0.5  # of 20 means of 40 generations
        assert row["shuffled"] == pytest.approx(row["chance"], abs=4 * deviation)


def test_recall_sees_layout_through_noise():
    real = make_images(40)
    noisy = (0.5 * real[:10] + 0.5 * make_images(10, seed=9)).clamp(-1, 1)
    row = thumbnail_recall(noisy, torch.arange(10), real, [1])[0]
    assert row["recall"] == 1.0


def test_recall_is_nothing_when_targets_are_wrong():
    real = make_images(40)
    wrong = (torch.arange(40) + 1) % 40
    assert thumbnail_recall(real, wrong, real, [1])[0]["recall"] == 0.0


def test_a_generation_that_is_the_mean_image_finds_nothing():
    real = torch.cat([make_images(5), -make_images(5)])  # mean thumbnail 0
    grey = torch.zeros(10, 3, 32, 32)
    assert torch.equal(thumbnail_scores(grey, real), torch.zeros(10, 10, dtype=torch.float64))
    assert [row["recall"] for row in thumbnail_recall(grey, torch.arange(10), real, [1, 9])] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x: (x * 127).to(torch.uint8), TypeError, r"Images are torch.uint8.*to_pixels"),
        (lambda x: x * 2, ValueError, r"Images run from -1.99.* to 1.99.*Expected \[-1, 1\]"),
        (lambda x: x / 0, ValueError, r"Images run from -inf to inf"),
        (lambda x: x * math.nan, ValueError, r"Images run from nan"),
        (lambda x: x[0], ValueError, r"shape \(3, 32, 32\). Expected \(n, 3, H, W\)"),
        (lambda x: x[:, :1], ValueError, r"shape \(12, 1, 32, 32\)"),
        (lambda x: x[:0], ValueError, r"shape \(0, 3, 32, 32\)"),
        (lambda x: x[..., :8], ValueError, r"32 x 8 pixels for thumbnails of 16"),
    ],
)
def test_thumbnails_refuse(change, error, sentence):
    with pytest.raises(error, match=sentence):
        thumbnails(change(make_images()))


@pytest.mark.parametrize(
    ("target", "error", "sentence"),
    [
        (torch.arange(3), ValueError, r"shape \(12, 12\) and `target_index` \(3,\)"),
        (torch.arange(12) + 1, ValueError, r"runs from 1 to 12 with 12 candidates. Expected 0 to 11"),
        (torch.arange(12) - 1, ValueError, r"runs from -1 to 10"),
        (torch.arange(12).float(), TypeError, r"`target_index` is torch.float32. Expected int64"),
    ],
)
def test_recall_refuses_wrong_targets(target, error, sentence):
    with pytest.raises(error, match=sentence):
        thumbnail_recall(make_images(seed=1), target, make_images(), [1])


def test_scores_refuse_a_single_real_image():
    with pytest.raises(ValueError, match=r"`real` has 1 images. Expected two or more"):
        thumbnail_scores(make_images(), make_images(1))


def test_recall_refuses_k_over_the_real_images():
    with pytest.raises(ValueError, match="k is 13 with 12 candidates"):
        thumbnail_recall(make_images(), torch.arange(12), make_images(), [13])
