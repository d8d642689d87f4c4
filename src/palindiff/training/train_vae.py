"""Training the VAE: a recipe, images in memory, the common loop, and latents brought to unit variance."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pydantic import BaseModel
from torch import Tensor

from palindiff.atomic import atomic_folder
from palindiff.data.images import Fit, decode_image, fit_image, to_pixels, to_tensor
from palindiff.data.sources import DataConfig, ImageSet, open_images
from palindiff.models.vae import VaeConfig, build_vae, normalize_latents
from palindiff.objectives.vae import VaeObjective, VaeObjectiveConfig, psnr_db, squared_error
from palindiff.training.loop.device import make_accelerator
from palindiff.training.loop.distributed import check_placement
from palindiff.training.loop.loop import LoopConfig, MachineConfig, OptimizerConfig, Run, check_shares, train
from palindiff.training.loop.run_log import RunLog

EVALUATION_BATCH = 64
MAX_SHIFT_PX = 4
COLOUR_ORDERS = tuple(itertools.permutations(range(3)))


class VaeRecipe(BaseModel, frozen=True, extra="forbid"):
    """All that `palindiff train-vae` takes."""

    data: DataConfig
    validation_split: str = "validation"
    vae: VaeConfig = VaeConfig()
    objective: VaeObjectiveConfig = VaeObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(new_learning_rate=1.5e-3)
    loop: LoopConfig
    machine: MachineConfig = MachineConfig()


class ImagesInMemory:
    """A training set of whole images, (n, 3, H, W) uint8, each read turned, mirrored, shifted and recoloured.

    Some thousand images are few for an VAE: without this it learns them by heart.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows as x (b, 3, H, W) in [-1, 1]; the two uniform numbers (b, 2) choose how each is changed."""
        return {
            "x": torch.stack([augment(to_pixels(self.images[row]), u) for row, u in zip(rows, uniform, strict=True)])
        }


def augment(x: Tensor, uniform: Tensor) -> Tensor:
    """Turn by a multiple of 90 degrees, mirror, shift on white by up to MAX_SHIFT_PX, and permute the colours.

    Shapes: x (3, H, H) in [-1, 1]; uniform (2,) in [0, 1) -> (3, H, H).
    """
    turn, mirror, colours = _digits(float(uniform[0]), (4, 2, 12))
    x = x.rot90(turn, (1, 2))
    if mirror:
        x = x.flip(2)
    if colours < len(COLOUR_ORDERS):  # half of the images keep their colours
        x = x[list(COLOUR_ORDERS[colours])]
    down, right = _digits(float(uniform[1]), (2 * MAX_SHIFT_PX + 1, 2 * MAX_SHIFT_PX + 1))
    padded = F.pad(x, (MAX_SHIFT_PX,) * 4, value=1.0)
    return padded[:, down : down + x.shape[1], right : right + x.shape[2]]


def _digits(uniform: float, bases: tuple[int, ...]) -> list[int]:
    """Cut one uniform number into independent uniform digits of the given bases."""
    digits = []
    for base in bases:
        digit = min(int(uniform * base), base - 1)
        digits.append(digit)
        uniform = uniform * base - digit
    return digits


def train_vae(recipe: VaeRecipe, output: Path, show_progress: bool = True) -> dict[str, float]:
    """Train an VAE below `output` and write it, in fp16, to `output/vae`; the same call goes on where it was.

    Returns: `vae_error` of the written folder on the validation images.
    """
    size_px = recipe.vae.image_size_px
    accelerator = make_accelerator(recipe.machine)
    check_shares(recipe.loop, accelerator.num_processes)
    check_placement(recipe.optimizer, recipe.machine, accelerator)
    torch.manual_seed(recipe.loop.seed)
    vae = build_vae(recipe.vae)
    rows = open_images(recipe.data)
    training = decode_images(rows, size_px, recipe.data.fit)
    held_out = open_images(recipe.data.model_copy(update={"split": recipe.validation_split}))
    validation = decode_images(held_out, size_px, recipe.data.fit)
    run = Run(
        objective=VaeObjective(vae, recipe.objective),
        parameter_groups=[{"params": list(vae.parameters()), "lr": recipe.optimizer.new_learning_rate}],
        training_set=ImagesInMemory(training),
        loop=recipe.loop,
        optimizer=recipe.optimizer,
        machine=recipe.machine,
        run_log=RunLog(output, show_progress=show_progress),
        state_dir=str(output / "state"),
        fingerprints={"training set": rows.fingerprint},
        evaluators=[lambda step: vae_error(vae, validation)],
    )
    state = train(run, accelerator)
    mean, deviation = latent_moments(vae, training)
    normalize_latents(vae, mean, deviation)
    if accelerator.is_main_process and (state.has_learned or not (output / "vae").exists()):
        with atomic_folder(output / "vae", replace=True) as folder:
            vae.half().save_pretrained(folder)
    accelerator.wait_for_everyone()
    written = AutoencoderKL.from_pretrained(output / "vae").to(accelerator.device)
    return vae_error(written, validation)


def decode_images(rows: ImageSet, size_px: int, fit: Fit = "crop") -> Tensor:
    """Shapes: n rows -> (n, 3, size_px, size_px) uint8."""
    return torch.stack([to_tensor(fit_image(decode_image(row.source), size_px, fit)) for row in rows])


@torch.no_grad()
def vae_error(vae: AutoencoderKL, images: Tensor) -> dict[str, float]:
    """Error of reconstructions from the posterior's mean, in fp32: mean of each image's PSNR, and the pooled one."""
    errors = []
    for part in images.split(EVALUATION_BATCH):
        x = to_pixels(part).to(vae.device)
        errors.append(squared_error(x, vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)))
    error = torch.cat(errors)
    return {
        "validation_psnr_db": float(psnr_db(error).mean()),
        "validation_pooled_psnr_db": float(psnr_db(error.mean())),
    }


@torch.no_grad()
def latent_moments(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a draw of the posterior, over images and places.

    Shapes: images (n, 3, H, W) uint8 -> mean, deviation (ch,).
    """
    parts = [vae.encode(to_pixels(part).to(vae.device)).latent_dist for part in images.split(EVALUATION_BATCH)]
    mean, variance = (
        torch.cat([getattr(part, name) for part in parts]).transpose(0, 1).flatten(1)  # (n, ch, h, w) -> (ch, n*h*w)
        for name in ("mean", "var")
    )
    return mean.mean(dim=1), (mean.var(dim=1) + variance.mean(dim=1)).sqrt()
