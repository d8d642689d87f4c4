"""All rows of `palindiff demo --results`, and what of them is left out because the set lacks it.

Here: their order, and the reconstruction error of the VAE. Not here: what each of them measures (`emoji_protocol.py`,
`naming_protocol.py`, `vendor_protocol.py`), and writing the file (`demo.py`).
"""

from collections.abc import Sequence
from pathlib import Path

from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import reconstruction
from palindiff.evaluation.results import Row
from palindiff.experiments.emoji_protocol import EvaluatedModel, Report, measure_generation
from palindiff.experiments.emoji_subsets import COMPOSITION, HOW_TO_GET, has_split, missing_vendor, styles_of
from palindiff.experiments.naming_protocol import EmbeddedConcepts, calibration_row, image_to_text_rows, naming_rows
from palindiff.experiments.vendor_protocol import missing_packages, vendor_rows
from palindiff.training.features.images_in_memory import decode_images

PSNR = "psnr_db"


def cheap_rows(
    model: EvaluatedModel, unseen: Sequence[EmbeddedConcepts], compositions: Sequence[EmbeddedConcepts]
) -> list[Row]:
    """Measure what the demo page measures each time: naming of unseen concepts and of compositions."""
    found = [row for concepts in unseen for row in naming_rows(model, concepts)]
    return found + [row for concepts in compositions for row in image_to_text_rows(model, concepts, "composition")]


def further_rows(
    model: EvaluatedModel, unseen: Sequence[EmbeddedConcepts], data_dir: Path, report: Report
) -> list[Row]:
    """Measure the rest: generation, an unseen vendor, calibration, the VAE. One line reports what is left out."""
    left_out = left_out_of(data_dir)
    if left_out:
        report(f"left out: {'; '.join(left_out)}. For a complete set use {HOW_TO_GET}")
    found = measure_generation(model, data_dir, report)
    if missing_vendor(data_dir) is None:
        found += vendor_rows(model, data_dir, report)
    found += [calibration_row(model, concepts) for concepts in unseen]
    report("reconstructing unseen images by the VAE")
    return found + reconstruction_rows(model, data_dir)


def left_out_of(data_dir: Path) -> list[str]:
    """List the measurements that a set or this installation lacks something for, each with what is lacking."""
    lacking = missing_vendor(data_dir)
    found = [] if lacking is None else [f"unseen vendor ({lacking})"]
    if not has_split(data_dir, COMPOSITION):
        found.append(f"unseen compositions (`{data_dir}` has no split `{COMPOSITION}`)")
    packages = missing_packages() if lacking is None else None
    return found if packages is None else [*found, packages]


def reconstruction_rows(model: EvaluatedModel, data_dir: Path) -> list[Row]:
    """Measure the VAE on all unseen images of each style in the set.

    Units: decibel, the mean of each image's PSNR.
    """
    rows = open_images(DataConfig(path=str(data_dir), split="test"))
    found: list[Row] = []
    for style in styles_of(data_dir, "test"):
        chosen = rows.select([number for number, row in enumerate(rows.columns()) if row["style"] == style])
        images = decode_images(chosen, model.pipeline.image_size_px)
        measured = next(row for row in reconstruction(model.pipeline.vae, images) if row["metric"] == PSNR)
        found.append(model.label(measured, style, split="unseen"))
    return found
