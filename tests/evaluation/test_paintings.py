"""paintings.py: thumbnails by hand, scores against a plain cosine, recall known beforehand, and what is refused."""

import math

import pytest
import torch

from palindiff.evaluation.paintings import painting_recall, painting_scores, thumbnails


def make_pictures(n=12, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_thumbnail_is_the_mean_of_each_quarter_by_hand():
    picture = torch.zeros(1, 3, 4, 4)
    picture[0, 0] = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.5, -1, -1], [0.5, 0.5, -1, 0]])
    picture[0, 2, :, 2:] = 1
    assert thumbnails(picture, side=2).tolist() == [[0.25, 0, 0.5, -0.75, 0, 0, 0, 0, 0, 1, 0, 1]]


def test_thumbnail_shares_a_pixel_between_two_areas_by_hand():
    """Three pixels in two areas: the middle one is halved."""
    picture = torch.tensor([1.0, -1.0, 0.4]).expand(1, 3, 3, 3)
    left, right = (1 - 0.5) / 1.5, (-0.5 + 0.4) / 1.5
    assert thumbnails(picture, side=2)[0].tolist() == pytest.approx([left, right] * 6, abs=1e-6)  # float32


@pytest.mark.parametrize("size", [16, 20, 37])
def test_thumbnail_keeps_the_mean_colour(size):
    pictures = make_pictures(size=size)
    mean = thumbnails(pictures).unflatten(1, (3, 256)).mean(dim=2)  # (n, 3*16*16) -> (n, 3)
    torch.testing.assert_close(mean, pictures.mean(dim=(2, 3)), atol=1e-6, rtol=0)  # float32 means of 1,369 pixels


def test_thumbnail_of_a_picture_of_that_size_is_the_picture():
    pictures = make_pictures(size=16)
    assert torch.equal(thumbnails(pictures), pictures.flatten(1))


def test_scores_equal_a_plain_cosine_of_what_differs_from_the_real_mean():
    paintings, real = make_pictures(3, seed=1), make_pictures(5, size=48)
    small, small_real = thumbnails(paintings).tolist(), thumbnails(real).tolist()
    mean = [sum(column) / 5 for column in zip(*small_real, strict=True)]
    for i, j in ((0, 0), (2, 4), (1, 3)):
        a = [value - m for value, m in zip(small[i], mean, strict=True)]
        b = [value - m for value, m in zip(small_real[j], mean, strict=True)]
        by_hand = math.sumprod(a, b) if hasattr(math, "sumprod") else sum(u * v for u, v in zip(a, b, strict=True))
        by_hand /= math.hypot(*a) * math.hypot(*b)
        assert painting_scores(paintings, real)[i, j].item() == pytest.approx(by_hand, abs=1e-12)  # float64


def test_scores_of_a_painting_ignore_the_other_paintings():
    paintings, real = make_pictures(6, seed=1), make_pictures()
    alone = torch.cat([painting_scores(painting[None], real) for painting in paintings])
    torch.testing.assert_close(painting_scores(paintings, real), alone, atol=1e-12, rtol=0)  # float64 sums


def test_scores_ignore_the_order_of_real_pictures():
    paintings, real = make_pictures(6, seed=1), make_pictures()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    scores = painting_scores(paintings, real)
    torch.testing.assert_close(painting_scores(paintings, real[order]), scores[:, order], atol=1e-12, rtol=0)


def test_recall_is_whole_for_the_real_pictures_themselves():
    real = make_pictures(40)
    target = torch.arange(40).flip(0)
    for row in painting_recall(real[target], target, real, [1, 4]):
        assert (row["direction"], row["recall"], row["n"]) == ("caption_to_painting", 1.0, 40)
        assert row["chance"] == pytest.approx(row["k"] / 40)
        deviation = (row["chance"] * (1 - row["chance"]) / (40 * 20)) ** 0.5  # of 20 means of 40 paintings
        assert row["shuffled"] == pytest.approx(row["chance"], abs=4 * deviation)


def test_recall_sees_layout_through_noise():
    real = make_pictures(40)
    noisy = (0.5 * real[:10] + 0.5 * make_pictures(10, seed=9)).clamp(-1, 1)
    row = painting_recall(noisy, torch.arange(10), real, [1])[0]
    assert row["recall"] == 1.0


def test_recall_is_nothing_when_targets_are_wrong():
    real = make_pictures(40)
    wrong = (torch.arange(40) + 1) % 40
    assert painting_recall(real, wrong, real, [1])[0]["recall"] == 0.0


def test_a_painting_that_is_the_mean_picture_finds_nothing():
    real = torch.cat([make_pictures(5), -make_pictures(5)])  # mean thumbnail 0
    grey = torch.zeros(10, 3, 32, 32)
    assert torch.equal(painting_scores(grey, real), torch.zeros(10, 10, dtype=torch.float64))
    assert [row["recall"] for row in painting_recall(grey, torch.arange(10), real, [1, 9])] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x: (x * 127).to(torch.uint8), TypeError, r"Pictures are torch.uint8.*to_pixels"),
        (lambda x: x * 2, ValueError, r"Pictures run from -1.99.* to 1.99.*Expected \[-1, 1\]"),
        (lambda x: x / 0, ValueError, r"Pictures run from -inf to inf"),
        (lambda x: x * math.nan, ValueError, r"Pictures run from nan"),
        (lambda x: x[0], ValueError, r"shape \(3, 32, 32\). Expected \(n, 3, H, W\)"),
        (lambda x: x[:, :1], ValueError, r"shape \(12, 1, 32, 32\)"),
        (lambda x: x[:0], ValueError, r"shape \(0, 3, 32, 32\)"),
        (lambda x: x[..., :8], ValueError, r"32 x 8 pixels for thumbnails of 16"),
    ],
)
def test_thumbnails_refuse(change, error, sentence):
    with pytest.raises(error, match=sentence):
        thumbnails(change(make_pictures()))


@pytest.mark.parametrize(
    ("target", "error", "sentence"),
    [
        (torch.arange(3), ValueError, r"shape \(3,\) for 12 paintings. Expected \(12,\)"),
        (torch.arange(12) + 1, ValueError, r"runs from 1 to 12 with 12 real pictures. Expected 0 to 11"),
        (torch.arange(12) - 1, ValueError, r"runs from -1 to 10"),
        (torch.arange(12).float(), TypeError, r"`target_index` is torch.float32. Expected int64"),
    ],
)
def test_recall_refuses_wrong_targets(target, error, sentence):
    with pytest.raises(error, match=sentence):
        painting_recall(make_pictures(seed=1), target, make_pictures(), [1])


def test_scores_refuse_a_single_real_picture():
    with pytest.raises(ValueError, match=r"`real` has 1 pictures. Expected two or more"):
        painting_scores(make_pictures(), make_pictures(1))


def test_recall_refuses_k_over_the_real_pictures():
    with pytest.raises(ValueError, match="k is 13 with 12 candidates"):
        painting_recall(make_pictures(), torch.arange(12), make_pictures(), [13])
