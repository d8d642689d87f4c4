"""efficientnet.py: known images are recognised, features are the network's own, weights are checked and never run."""

import os
import pickle

import pytest
import torch
from sklearn.datasets import load_sample_images

from palindiff.evaluation import efficientnet
from palindiff.evaluation.efficientnet import EffLite0Features, read_weights
from toys.image_features import needs_efficientnet, toy_pixels

IMAGENET_CLASS = {"china.jpg": 442, "flower.jpg": 985}  # bell cote; daisy


@pytest.fixture(scope="module")
def extractor():
    return EffLite0Features()


@needs_efficientnet
def test_photographs_are_classified_from_the_features(extractor):
    """Wrong weights, colours, normalisation or pooling would not name a temple's tower and a flower."""
    samples = load_sample_images()
    for name, image in zip(samples.filenames, samples.images, strict=True):
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        logits = extractor.network._fc(extractor(pixels))
        assert logits.argmax().item() == IMAGENET_CLASS[os.path.basename(name)]


@needs_efficientnet
def test_features_are_what_the_network_s_own_forward_pools(extractor):
    pixels = toy_pixels(3, side=224)
    pooled = []
    hook = extractor.network._dropout.register_forward_hook(lambda module, args, output: pooled.append(args[0]))
    extractor.network((pixels.float() - 127) / 128)  # 224 px need no resizing
    hook.remove()
    features = extractor(pixels)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, pooled[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(extractor(pixels[1:2]), features[1:2], rtol=0, atol=1e-5)  # whatever the batch


@needs_efficientnet
def test_another_file_of_weights_is_refused(monkeypatch):
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"has the SHA-256 579344248a93….*Expected 000000000000…"):
        EffLite0Features()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "NETWORK_PACKAGE", "no_such_network")
    with pytest.raises(ModuleNotFoundError, match=r"`no_such_network` is not installed.*efficientnet-lite-pytorch"):
        EffLite0Features()


@needs_efficientnet
@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_pixels_that_are_no_8_bit_rgb_are_refused(extractor, pixels):
    with pytest.raises(ValueError, match="Expected \\(b, 3, H, W\\) uint8"):
        extractor(pixels)


class Runs:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"weight": Runs(tmp_path / "made")}, protocol=2))
    with pytest.raises(ValueError, match=r"cannot be read as weights.*nothing else in it is run"):
        read_weights(tmp_path / "weights.pth")
    torch.save({"weight": Runs(tmp_path / "made")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "made").exists()


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path / "other.pth")
