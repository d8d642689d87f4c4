"""How well the VAE brings unseen images back: its error, and a sheet of before and after.

Here: which images, the rows of `results/vae.json`. Not here: the error itself (`training/vae.py`).
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from palindiff.data.images import decode_image, fit_image, to_image, to_pixels, to_tensor
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.results import write_results
from palindiff.evaluation.retrieval import Row
from palindiff.evaluation.sheets import pairs_sheet
from palindiff.experiments.emoji_protocol import evenly
from palindiff.pretrained.bundled import bundled_folder
from palindiff.training.loop.run_log import read_log
from palindiff.training.train_vae import decode_images, vae_error

NUM_SHOWN = 32  # pairs on the sheet, evenly spread over the split
SPLITS = ("train", "test")


@dataclass(frozen=True)
class VaeReportOptions:
    """What the user asked for."""

    model: str  # "bundled", or a folder that `palindiff train-vae` wrote
    data_dir: Path
    results: Path | None
    sheet: Path | None
    seed: int = 0  # written down; nothing is drawn at random


def report_vae(options: VaeReportOptions, command: str) -> list[Row]:
    """Measure a VAE on images it was trained on and on unseen ones; write what is asked for.

    Returns: one row a split: split, n, psnr_db (mean of each image's), pooled_psnr_db, steps, seconds (of training).
    """
    started = time.perf_counter()
    folder = bundled_folder("vae-emoji") if options.model == "bundled" else Path(options.model) / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    log = read_log((folder if options.model == "bundled" else Path(options.model)) / "log.jsonl")
    seconds = round(max(line.get("elapsed_s", 0) for line in log))
    cost = {"steps": max(line["step"] for line in log), "seconds": seconds}
    rows: list[Row] = []
    for split in SPLITS:
        images = decode_images(
            open_images(DataConfig(path=str(options.data_dir), split=split)), vae.config.sample_size
        )
        error = vae_error(vae, images)
        measured = {name.removeprefix("validation_"): round(value, 3) for name, value in error.items()}
        rows.append({"split": split, "n": len(images), **measured, **cost})
    if options.results is not None:  # before the sheet, which would make a clean working tree dirty
        settings = {"parameters": vae.num_parameters(), "latent_channels": vae.config.latent_channels}
        write_results(options.results, rows, command, settings, options.seed, time.perf_counter() - started)
    if options.sheet is not None:
        write_sheet(vae, options.data_dir, options.sheet)
    return rows


@torch.no_grad()
def write_sheet(vae: AutoencoderKL, data_dir: Path, path: Path) -> None:
    """Draw evenly spread unseen images before and after the VAE."""
    rows = evenly(open_images(DataConfig(path=str(data_dir), split="test")), NUM_SHOWN)
    before = [fit_image(decode_image(row.source), vae.config.sample_size) for row in rows]
    x = to_pixels(torch.stack([to_tensor(image) for image in before]))
    after = [to_image(x_hat) for x_hat in vae.decode(vae.encode(x).latent_dist.mode()).sample]
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs_sheet(before, after, [row.captions[0] for row in rows]).save(path)
