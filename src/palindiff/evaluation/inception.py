"""Inception's features of images, for FID and KID: torch-fidelity's network with weights from a file.

The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, which it downloads from its own release.
"""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from palindiff.evaluation.distances import INCEPTION
from palindiff.evaluation.efficientnet import check_pixels, read_weights
from palindiff.evaluation.fidelity import load_torch_fidelity

SHA256_START = "6726825d"  # of the original file, by its name


class InceptionFeatures(nn.Module):
    """Images to the 2,048 pooled features of InceptionV3 as converted from TensorFlow.

    Only with the original weights its label is `inception`, so that the distances are FID and KID; with any other it
    is `inception_` and the first eight digits of the file's SHA-256.

    Source: Heusel et al. (NeurIPS 2017), by torch-fidelity's `inception-v3-compat`, which resizes to 299 px as
            TensorFlow 1 does.
    Shapes: (b, 3, H, W) uint8 -> (b, 2048) float32.
    Raises: FileNotFoundError; ValueError if the file holds no weights, or those of another network.
    """

    description = "InceptionV3 of torch-fidelity, 299 px, bilinear as in TensorFlow 1, not antialiased"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors, sha256 = read_weights(weights)
        start = sha256[: len(SHA256_START)]
        self.label = INCEPTION if start == SHA256_START else f"{INCEPTION}_{start}"
        copy = io.BytesIO()  # torch-fidelity unpickles whatever it is given: so this, not the file
        torch.save(tensors, copy)
        copy.seek(0)
        try:
            self.network = load_torch_fidelity().FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=copy
            )
        except RuntimeError as error:  # `load_state_dict`
            raise ValueError(
                f"`{weights}` does not fit InceptionV3 ({str(error).splitlines()[-1].strip()[:200]}). Expected the "
                "weights that torch-fidelity publishes. Pass weights-inception-2015-12-05-6726825d.pth."
            ) from error

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) uint8 -> (b, 2048) float32."""
        check_pixels(pixels)
        (features,) = self.network(pixels)
        return features
