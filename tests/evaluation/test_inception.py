"""inception.py: features of torch-fidelity's network with weights from a file, and their distances' names."""

import pytest
import torch

from palindiff.evaluation import inception
from palindiff.evaluation.distances import distance_rows
from palindiff.evaluation.fidelity import load_torch_fidelity
from palindiff.evaluation.inception import InceptionFeatures
from toys.image_features import calculate_metrics, needs_torch_fidelity, toy_pixels

pytestmark = needs_torch_fidelity


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights for the real network, which has no other size."""

    class Random(load_torch_fidelity().FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            """Keep the first weights."""

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    network = Random("random", ["2048"], feature_extractor_weights_path=str(path))
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)  # features that differ from image to image
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def features(weights):
    return InceptionFeatures(weights)


def test_kid_over_the_features_is_torch_fidelity_s(weights, features):
    generated, real = toy_pixels(2, side=20), toy_pixels(2, side=20, seed=1, darker=90)
    theirs = calculate_metrics(
        generated, real, "inception-v3-compat", feature_extractor_weights_path=str(weights), kid=True, kid_subsets=1,
        kid_subset_size=2, batch_size=2,
    )  # fmt: skip
    kd, fd = distance_rows(features.label, features(generated), features(real), num_subsets=1, subset_size=2)[:2]
    assert kd["dimensions"] == 2048
    assert kd["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert kd["value"] != 0
    assert fd["value"] is None
    assert "2 images for 2,048 dimensions. Expected at least 10,240" in fd["reason"]


def test_only_the_original_weights_give_fid_and_kid(weights, features, monkeypatch):
    sha256 = inception.read_weights(weights)[1]
    assert features.label == f"inception_{sha256[:8]}"
    monkeypatch.setattr(inception, "SHA256_START", sha256[:8])
    assert InceptionFeatures(weights).label == "inception"


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit InceptionV3.*Pass weights-inception-2015-12-05-6726825d.pth"):
        InceptionFeatures(tmp_path / "other.pth")
