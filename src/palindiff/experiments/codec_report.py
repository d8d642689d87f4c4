"""How well the autoencoder brings unseen pictures back: its error, and a sheet of before and after.

Here: which pictures, the rows of `results/codec.json`. Not here: the error itself (`training/codec.py`).
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from palindiff.data.pictures import fit_picture, read_picture, to_picture, to_pixels, to_tensor
from palindiff.data.sources import DataConfig, open_pictures
from palindiff.evaluation.results import write_results
from palindiff.evaluation.retrieval import Row
from palindiff.evaluation.sheets import pairs_sheet
from palindiff.experiments.emoji_protocol import evenly
from palindiff.inference.shipped import shipped_folder
from palindiff.training.codec import codec_error, read_pictures
from palindiff.training.journal import read_log

NUM_SHOWN = 32  # pairs on the sheet, evenly spread over the split
SPLITS = ("train", "test")


@dataclass(frozen=True)
class CodecReportOptions:
    """What the user asked for."""

    model: str  # "shipped", or a folder that `palindiff train-codec` wrote
    data_dir: Path
    results: Path | None
    sheet: Path | None
    seed: int = 0  # written down; nothing is drawn at random


def report_codec(options: CodecReportOptions, command: str) -> list[Row]:
    """Measure a codec on pictures it was trained on and on unseen ones; write what is asked for.

    Returns: one row a split: split, n, psnr_db (mean of each picture's), pooled_psnr_db, steps, seconds (of training).
    """
    started = time.perf_counter()
    folder = shipped_folder("codec-emoji") if options.model == "shipped" else Path(options.model) / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    log = read_log((folder if options.model == "shipped" else Path(options.model)) / "log.jsonl")
    seconds = round(max(line.get("elapsed_s", 0) for line in log))
    cost = {"steps": max(line["step"] for line in log), "seconds": seconds}
    rows: list[Row] = []
    for split in SPLITS:
        pictures = read_pictures(
            open_pictures(DataConfig(path=str(options.data_dir), split=split)), vae.config.sample_size
        )
        error = codec_error(vae, pictures)
        measured = {name.removeprefix("validation_"): round(value, 3) for name, value in error.items()}
        rows.append({"split": split, "n": len(pictures), **measured, **cost})
    if options.results is not None:  # before the sheet, which would make a clean working tree dirty
        settings = {"parameters": vae.num_parameters(), "latent_channels": vae.config.latent_channels}
        write_results(options.results, rows, command, settings, options.seed, time.perf_counter() - started)
    if options.sheet is not None:
        write_sheet(vae, options.data_dir, options.sheet)
    return rows


@torch.no_grad()
def write_sheet(vae: AutoencoderKL, data_dir: Path, path: Path) -> None:
    """Draw evenly spread unseen pictures before and after the autoencoder."""
    rows = evenly(open_pictures(DataConfig(path=str(data_dir), split="test")), NUM_SHOWN)
    before = [fit_picture(read_picture(row.source), vae.config.sample_size) for row in rows]
    x = to_pixels(torch.stack([to_tensor(picture) for picture in before]))
    after = [to_picture(x_hat) for x_hat in vae.decode(vae.encode(x).latent_dist.mode()).sample]
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs_sheet(before, after, [row.captions[0] for row in rows]).save(path)
