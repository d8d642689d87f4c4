"""distances.py: equal to torch-fidelity's own command on the same features, and to values by hand."""

import math

import pytest
import torch

from palindiff.evaluation.distances import (
    distance_rows,
    frechet_distance,
    has_monge_distance,
    kernel_distance,
    monge_distance,
    too_few_for_frechet,
)
from palindiff.evaluation.fidelity import load_torch_fidelity
from toys.image_features import calculate_metrics, needs_torch_fidelity, toy_pixels

pytestmark = needs_torch_fidelity
D = 6


def drawn(n, d=D, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def with_moments(n, mean, deviation, seed=0):
    """Points whose mean and covariance are exactly these, up to rounding."""
    x = drawn(n, len(mean), seed).double()
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T  # identity covariance
    return (x * torch.tensor(deviation) + torch.tensor(mean)).float()


@pytest.fixture(scope="module")
def toy_extractor():
    """An extractor known to torch-fidelity: the features are some pixels, mixed."""
    torch_fidelity = load_torch_fidelity()
    mixing = torch.randn(3 * 8 * 8, D, generator=torch.Generator().manual_seed(9)) / 100

    class ToyFeatures(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("mixed",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "mixed"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, pixels):
            return (pixels.flatten(1).float() @ mixing,)

    torch_fidelity.register_feature_extractor("toy-features", ToyFeatures)
    return ToyFeatures("toy-features", ["mixed"])


def test_distances_equal_torch_fidelity_s_command(toy_extractor):
    generated, real = toy_pixels(40), toy_pixels(50, seed=1, darker=40)
    theirs = calculate_metrics(
        generated, real, "toy-features", fid=True, kid=True, kid_subset_size=20, kid_subsets=7, batch_size=16
    )
    (features,), (reference,) = toy_extractor(generated), toy_extractor(real)
    kid, fid = distance_rows("inception", features, reference, num_subsets=7, subset_size=20)[:2]
    assert kid["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)  # batches sum in another
    assert kid["subset_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)  # order
    assert fid["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert theirs["frechet_inception_distance"] > 1


def test_the_frechet_distance_of_known_gaussians_is_the_formula_s():
    """Diagonal covariances: the trace term is the squared difference of deviations."""
    first = with_moments(60, [0.0, 1.0, -2.0], [1.0, 2.0, 0.5])
    second = with_moments(80, [1.0, 1.0, 0.0], [2.0, 2.0, 1.5], seed=1)
    by_hand = (1 + 0 + 4) + (1 + 0 + 1)
    assert frechet_distance(first, second) == pytest.approx(by_hand, abs=1e-4)  # float32 features
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-4)


def mmd_by_loops(x, y):
    def kernel(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def mean(a, b, same):
        terms = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return math.fsum(terms) / len(terms)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_the_kernel_distance_is_the_unbiased_mmd_by_loops():
    """A subset of all images is the whole set, in another order."""
    x, y = drawn(7), drawn(7, seed=1, shift=0.7)
    mean, deviation = kernel_distance(x, y, num_subsets=3, subset_size=7)
    assert mean == pytest.approx(mmd_by_loops(x, y), rel=1e-4)  # float32
    assert deviation == pytest.approx(0, abs=1e-5)
    assert kernel_distance(y.flip(0), x, 3, 7)[0] == pytest.approx(mean, rel=1e-4)


def test_subsets_vary_and_their_number_counts():
    x, y = drawn(30), drawn(30, seed=1)
    mean, deviation = kernel_distance(x, y, num_subsets=20, subset_size=10)
    assert deviation > 0
    assert kernel_distance(x, y, num_subsets=20, subset_size=10) == (mean, deviation)
    assert kernel_distance(x, y, num_subsets=5, subset_size=10)[0] != mean


def test_too_few_images_have_a_reason_in_place_of_a_frechet_distance():
    x, y = drawn(5 * D - 1), drawn(5 * D, seed=1)
    kd, fd = distance_rows("efflite0", x, y, num_subsets=4, subset_size=9)[:2]
    assert (kd["metric"], fd["metric"]) == ("kd_efflite0", "fd_efflite0")
    assert kd["value"] == kernel_distance(x, y, 4, 9)[0]
    assert fd["value"] is None
    assert fd["reason"] == "29 images for 6 dimensions. Expected at least 30 in each set."
    assert {key: kd[key] for key in ("n", "num_reference", "dimensions", "num_subsets", "subset_size")} == {
        "n": 29, "num_reference": 30, "dimensions": D, "num_subsets": 4, "subset_size": 9
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"29 images for 6 dimensions.*Pass more images"):
        frechet_distance(x, y)


def test_just_enough_images_have_a_frechet_distance():
    x, y = drawn(5 * D), drawn(5 * D, seed=1)
    assert too_few_for_frechet(x, y) == ""
    fd = distance_rows("efflite0", x, y, subset_size=9)[1]
    assert fd["value"] == frechet_distance(x, y)
    assert "reason" not in fd


def test_the_names_are_inception_s_for_inception_alone():
    x, y = drawn(30), drawn(30, seed=1)
    names = [row["metric"] for row in distance_rows("inception", x, y, subset_size=9)]
    others = [row["metric"] for row in distance_rows("inception_12345678", x, y, subset_size=9)]
    assert names[:2] == ["kid", "fid"]
    assert others[:2] == ["kd_inception_12345678", "fd_inception_12345678"]
    assert names[2:] == (["mind"] if has_monge_distance() else [])


def test_a_shift_has_the_monge_distance_three_times_its_squared_length():
    """In each direction u a shift v moves all by u·v, whose square is |v|² / d on average."""
    if not has_monge_distance():
        pytest.skip("this release of torch-fidelity has no MIND")
    x, shift = drawn(20), torch.tensor([1.0, 0, 2, 0, 0, 0])
    assert monge_distance(x, x + shift) == pytest.approx(3 * 5, rel=0.1)  # some hundred random directions
    assert monge_distance(x, x) == 0


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda x, y: (x[:8], y), "8 images and a subset size of 9.*at least 9 images in each set.*kid_subset_size"),
        (lambda x, y: (x[:, :3], y), r"`features` has shape \(30, 3\) and `reference` \(30, 6\)"),
        (
            lambda x, y: (x, y.clone().index_fill_(0, torch.tensor([3]), float("nan"))),
            "6 of 180 numbers in `reference`",
        ),
    ],
)
def test_features_that_cannot_be_compared_are_refused(broken, sentence):
    with pytest.raises(ValueError, match=sentence):
        distance_rows("efflite0", *broken(drawn(30), drawn(30, seed=1)), subset_size=9)
