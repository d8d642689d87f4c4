"""Reconstruction error of a VAE on seen and unseen images, and a sheet of images before and after.

Here: which images, and the rows of `results/vae.json`. Not here: the error itself (`evaluation/evaluators.py`).
"""

import time
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL

from palindiff.data.images import decode_image, fit_image, to_image
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import reconstruction
from palindiff.evaluation.results import Row, write_results
from palindiff.evaluation.sheets import contact_sheet
from palindiff.experiments.emoji_protocol import as_pixels
from palindiff.experiments.emoji_subsets import evenly
from palindiff.pretrained.bundled import BUNDLED_VAE, bundled_folder, load_vae
from palindiff.training.features.images_in_memory import decode_images
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost

NUM_SHOWN = 32  # pairs on the sheet, evenly spread over the split
SPLITS = ("train", "test")


def report_vae(
    model: str, data_dir: Path, command: str, results: Path | None = None, sheet: Path | None = None
) -> list[Row]:
    """Measure a VAE (`bundled`, or a run of `palindiff train-vae`) on its training images and on unseen ones.

    Writes the rows to `results` and images before and after to `sheet`, if given.

    Returns: one row a split: split, n, psnr_db (mean of each image's), pooled_psnr_db, steps, seconds (of training).
    """
    started = time.perf_counter()
    is_bundled = model == "bundled"
    run = bundled_folder(BUNDLED_VAE) if is_bundled else Path(model)
    vae = load_vae("bundled" if is_bundled else str(run / "vae"))
    steps, seconds = training_cost(read_log(run / LOG_FILE))
    rows: list[Row] = []
    for split in SPLITS:
        images = decode_images(open_images(DataConfig(path=str(data_dir), split=split)), vae.config.sample_size)
        measured = {str(row["metric"]): round(cast("float", row["value"]), 3) for row in reconstruction(vae, images)}
        rows.append({"split": split, "n": len(images), **measured, "steps": steps, "seconds": round(seconds)})
    if results is not None:  # before the sheet: a new file would make the git tree dirty
        settings = {"parameters": vae.num_parameters(), "latent_channels": vae.config.latent_channels}
        write_results(results, rows, command, settings, 0, time.perf_counter() - started)  # nothing is drawn
    if sheet is not None:
        write_sheet(vae, data_dir, sheet)
    return rows


@torch.no_grad()
def write_sheet(vae: AutoencoderKL, data_dir: Path, path: Path) -> None:
    """Draw evenly spread unseen images before and after the VAE."""
    rows = evenly(open_images(DataConfig(path=str(data_dir), split="test")), NUM_SHOWN)
    before = [fit_image(decode_image(row.source), vae.config.sample_size) for row in rows]
    after = [to_image(x_hat) for x_hat in vae.decode(vae.encode(as_pixels(before)).latent_dist.mode()).sample]
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs, captions = list(zip(before, after, strict=True)), [row.captions[0] for row in rows]
    contact_sheet(pairs, captions, columns=4, title="left: before, right: after").save(path)
