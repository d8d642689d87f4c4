"""The sections of the demo page: generated images, names, retrieval, denoising step by step, training curves."""

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image, to_image
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.retrieval import Row
from palindiff.experiments.demo_page import figures, heading, img_tag, names, note, table
from palindiff.experiments.emoji_protocol import EmbeddedConcepts, concept_images, evenly
from palindiff.experiments.plots import Line, line_plot
from palindiff.inference.defaults import (
    GENERATION_GUIDANCE_SCALE,
    GENERATION_STEPS,
    NAMING_GUIDANCE_SCALE,
    NAMING_STEPS,
)
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

Section = tuple[str, str]  # heading, HTML

FREE_WORDING = (
    "a flat emoji of a blue apple",
    "an outlined emoji of a smiling face with a hat",
    "a flat emoji of a green heart on fire",
    "the flag of an island in the ocean",
    "an outlined emoji of a sad cat",
    "a flat emoji of a yellow car",
    "a red circle",
    "an outlined emoji of a doctor with dark skin tone",
)
NUM_GENERATED = 16  # captions of each group
NUM_NAMED = 8  # images in each style
NUM_QUERIES = 4  # captions in each style
NUM_CANDIDATES = 5  # best names, or images, of each
NUM_DENOISING_STEPS = 8  # steps shown of a generated image
DENOISED_CAPTION = "a flat emoji of a red heart"


def generated_images(pipeline: PalindiffPipeline, data_dir: Path, seed: int) -> Section:
    """Generate evenly spread captions of unseen and seen concepts and unseen compositions, and free wording."""
    compositions = evenly(open_images(DataConfig(path=str(data_dir), split="composition")), NUM_GENERATED)
    unseen, seen = (
        [row for style in STYLES for row in evenly(concept_images(data_dir, split, style), NUM_GENERATED // 2)]
        for split in ("test", "train")
    )
    groups = {
        "Concepts not in training": [row.captions[0] for row in unseen],
        "Concepts in training, but never in this style": [row.captions[0] for row in compositions],
        "Free wording": list(FREE_WORDING),
        "For comparison: concepts and styles in training": [row.captions[0] for row in seen],
    }
    captions = [caption for group in groups.values() for caption in group]
    seeds = [seed + number for number in range(len(captions))]
    images = iter(generate_images(pipeline, captions, seeds, GENERATION_GUIDANCE_SCALE))
    html = note(
        f"{GENERATION_STEPS} steps, guidance scale {GENERATION_GUIDANCE_SCALE:g}, one seed per image. The captions "
        "are spread evenly over each split, and every image is shown."
    )
    for title, group in groups.items():
        html += heading(title) + figures([next(images) for _ in group], group)
    return "Text-to-image generation", html


def named_images(embedded: Sequence[EmbeddedConcepts]) -> Section:
    """Name evenly spread unseen images among all unseen concepts."""
    rows = []
    for concepts in embedded:
        for i in evenly(range(len(concepts.rows)), NUM_NAMED):
            caption = concepts.captions[i]
            image = img_tag(decode_image(concepts.rows[i].source), caption)
            found = _names(concepts, i, concepts.scores[i], NUM_CANDIDATES)
            rows.append([image, escape(caption.partition(" emoji of ")[2] or caption), found])
    return "Zero-shot naming", note(
        f"Images of concepts not in training, spread evenly. Each shows the best {NUM_CANDIDATES} of "
        f"{len(embedded[0].rows)} names, none of which was in training. The right name is bold, with a ✓."
    ) + table(["image", "right name", "best names, with cosine"], rows)


def retrieved_images(embedded: Sequence[EmbeddedConcepts], rows: Sequence[Row]) -> Section:
    """Show the best images for evenly spread captions of unseen concepts, and the recall in both directions."""
    html = ""
    for concepts in embedded:
        last = len(concepts.rows) - 1
        for i in (min(place + 1, last) for place in evenly(range(last + 1), NUM_QUERIES)):  # others than named above
            scores = concepts.scores[:, i]
            best = _best(scores, NUM_CANDIDATES)
            html += heading(concepts.captions[i]) + figures(
                [decode_image(concepts.rows[j].source) for j in best],
                [f"{float(scores[j]):.2f}" for j in best],
                "row",
                best.index(i) if i in best else None,
                [concepts.captions[j] for j in best],
            )
    numbers = {"k": "k", "recall": "recall at k", "chance": "chance", "shuffled": "images shuffled", "n": "concepts"}
    cells = [[row["style"], str(row["direction"]).replace("_", " "), *(row[key] for key in numbers)] for row in rows]
    return "Image-text retrieval", note(
        "A caption of a concept not in training, and the images found for it, best first. The right image, if it is "
        "among them, has a bold score and a ✓. The table gives recall at k over all such concepts: the share of "
        "queries whose right answer is among the k best."
    ) + html + table(["style", "direction", *numbers.values()], cells)


def denoising_steps(pipeline: PalindiffPipeline, concepts: EmbeddedConcepts, seed: int) -> Section:
    """Show an image from z_T to z_0, and how the names of another image change from e_T to e_0."""
    images = denoised_images(pipeline, DENOISED_CAPTION, seed)
    times = [f"t = {t}" for t, _ in images]
    alts = [f"{DENOISED_CAPTION}, at {time}" for time in times]
    html = heading(f"Generating “{DENOISED_CAPTION}”")
    html += figures([image for _, image in images], times, "row", alts=alts)
    i = evenly(range(len(concepts.rows)), 3)[1]
    source = concepts.rows[i].source
    rows = []
    for step in pipeline.denoise_query([source], NAMING_STEPS, NAMING_GUIDANCE_SCALE):
        noisy = torch.nn.functional.normalize(step.e_t.float().cpu(), dim=-1) @ concepts.e.T
        predicted = step.e_0_hat.float().cpu() @ concepts.e.T
        rows.append([f"t = {step.t_e}", *(_names_and_rank(concepts, i, scores[0]) for scores in (noisy, predicted))])
    html += heading("Naming this image") + img_tag(decode_image(source), concepts.captions[i])
    html += table(["step", "names nearest to the noisy query e_t", "names nearest to the prediction of e_0"], rows)
    return "Denoising step by step", note(
        "The same network denoises an image's latent under a caption, and a caption's embedding under an image."
    ) + html


def training_curves(log: Sequence[Line]) -> Section:
    """Plot the training log."""
    plots = {
        "generation loss (mean squared error)": ["generation", "validation_generation"],
        "alignment loss (nats)": ["alignment", "validation_alignment"],
        "recall at 10, validation": ["image_to_text_recall_10", "text_to_image_recall_10"],
    }
    if importlib.util.find_spec("matplotlib") is None:
        html = note("Plots need the extra `plots`. Run `pip install 'palindiff[plots]'` and make the page again.")
    else:
        html = "".join(line_plot(log, columns, title) for title, columns in plots.items())
    return "Training curves", html


@torch.no_grad()
def denoised_images(pipeline: PalindiffPipeline, caption: str, seed: int) -> list[tuple[int, Image.Image]]:
    """Generate one caption and decode the latent at evenly spread steps: (t, image), from noise to the end."""
    kept: list[tuple[int, Tensor]] = []
    shown = evenly(range(GENERATION_STEPS), NUM_DENOISING_STEPS)

    def keep(_: object, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in shown:
            kept.append((int(t), tensors["latents"].clone()))
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        caption, num_inference_steps=GENERATION_STEPS, guidance_scale=GENERATION_GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(seed), callback_on_step_end=keep, output_type="latent",
    )  # fmt: skip
    scale = pipeline.vae.config.scaling_factor
    return [(t, to_image(pipeline.vae.decode(z / scale).sample[0])) for t, z in kept]


def _names(concepts: EmbeddedConcepts, i: int, scores: Tensor, number: int) -> str:
    """Write the best names by their scores (n,) for image i."""
    best = [(concepts.captions[j], float(scores[j])) for j in _best(scores, number)]
    return names(best, concepts.captions[i])


def _names_and_rank(concepts: EmbeddedConcepts, i: int, scores: Tensor) -> str:
    rank = int((scores > scores[i]).sum()) + 1
    return f"{_names(concepts, i, scores, 3)}<br><small>rank of the right name: {rank}</small>"


def _best(scores: Tensor, number: int) -> list[int]:
    return scores.topk(number).indices.tolist()
