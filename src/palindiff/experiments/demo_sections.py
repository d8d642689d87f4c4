"""What the demo page shows of a model, section by section: generations, names, search, both chains, training curves."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image, to_image
from palindiff.data.rows import CaptionedImage
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.retrieval import Row
from palindiff.experiments.curves import Line, curves
from palindiff.experiments.demo_page import figures, heading, html_table, img_tag, names, note, table
from palindiff.experiments.emoji_protocol import (
    GENERATION_GUIDANCE_SCALE,
    NAMING_GUIDANCE_SCALE,
    NAMING_STEPS,
    Embedded,
    concept_images,
    evenly,
)
from palindiff.inference.generation import GENERATION_STEPS, generate_images
from palindiff.inference.pipeline import PalindiffPipeline

Section = tuple[str, str]

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
NUM_GENERATED = 16  # of unseen concepts and of unseen compositions each
NUM_NAMED = 8  # images in each style
NUM_QUERIES = 4  # captions in each style
NUM_CANDIDATES = 5  # names, and images, shown for each
NUM_STRIP_STEPS = 8
CHAIN_CAPTION = "a flat emoji of a red heart"


def generations(pipeline: PalindiffPipeline, data_dir: Path, seed: int) -> Section:
    """Generate captions nobody chose: evenly spread unseen concepts and compositions; and fixed free wording."""
    of_style = [concept_images(data_dir, "test", style) for style in STYLES]
    unseen = [row for rows in of_style for row in evenly(rows, NUM_GENERATED // 2)]
    composition = evenly(open_images(DataConfig(path=str(data_dir), split="composition")), NUM_GENERATED)
    seen = [row for style in STYLES for row in evenly(concept_images(data_dir, "train", style), NUM_GENERATED // 2)]
    groups = {
        "Concepts never seen in training": [row.captions[0] for row in unseen],
        "Concepts seen, but never in this style": [row.captions[0] for row in composition],
        "Free wording": list(FREE_WORDING),
        "For comparison: concepts and styles seen in training": [row.captions[0] for row in seen],
    }
    captions = [caption for group in groups.values() for caption in group]
    generated = iter(
        generate_images(
            pipeline, captions, [seed + number for number in range(len(captions))], GENERATION_GUIDANCE_SCALE
        )
    )
    html = note(
        f"{GENERATION_STEPS} steps, guidance scale {GENERATION_GUIDANCE_SCALE:g}, one seed an image, nothing picked "
        "or left out."
    )
    for told, group in groups.items():
        html += heading(told) + figures([next(generated) for _ in group], group)
    return "From words to images", html


def named(embedded: Sequence[Embedded]) -> Section:
    """Name evenly spread unseen images among all unseen concepts."""
    rows = []
    for each in embedded:
        for place in _places(len(each.rows), NUM_NAMED):
            ranked = _best(each.scores[place], NUM_CANDIDATES)
            caption = each.captions[place]
            told = names([(each.captions[i], float(each.scores[place, i])) for i in ranked], caption)
            rows.append([img_tag(_small(each.rows[place]), caption), escape(_plain(caption)), told])
    total = len(embedded[0].rows)
    return "From an image to its name", note(
        f"Unseen images, evenly spread; the best {NUM_CANDIDATES} of {total} names, none of which was in training. "
        "The right one is bold, with a ✓."
    ) + html_table(["image", "what it is", "names found, with cosine"], rows)


def search(embedded: Sequence[Embedded], rows: Sequence[Row]) -> Section:
    """Show text-to-image search among unseen concepts, and the recall both ways with chance and control."""
    html = ""
    for each in embedded:
        for place in _places(len(each.rows), NUM_QUERIES, offset=1):
            ranked = _best(each.scores[:, place], NUM_CANDIDATES)
            images = [_small(each.rows[i]) for i in ranked]
            labels = [f"{float(each.scores[i, place]):.2f}" for i in ranked]
            right = ranked.index(place) if place in ranked else None
            html += heading(each.captions[place]) + figures(
                images, labels, "row", right, [each.captions[i] for i in ranked]
            )
    columns = {"style": "style", "direction": "direction", "k": "k", "recall": "recall at k", "chance": "chance",
               "shuffled": "images shuffled", "n": "concepts"}  # fmt: skip
    told = [
        {key: str(row[key]).replace("_", " ") if isinstance(row[key], str) else row[key] for key in columns}
        for row in rows
    ]
    return "Search among concepts never seen", note(
        "A caption, and the images found for it, best first; the right one has a bold score and a ✓ where it is "
        "among them. Below: the share of queries whose right answer is among the k best, both ways, over all unseen "
        "concepts."
    ) + html + table(told, columns)


def chains(pipeline: PalindiffPipeline, embedded: Embedded, seed: int) -> Section:
    """Walk both chains: z_T ... z_0 as images, and how the ranking of names settles from e_T to e_0."""
    steps = generation_chain(pipeline, CHAIN_CAPTION, seed)
    html = heading(f"Generation “{CHAIN_CAPTION}”") + figures(
        [image for _, image in steps],
        [f"t = {t}" for t, _ in steps],
        "row",
        alts=[f"{CHAIN_CAPTION}, at t = {t}" for t, _ in steps],
    )
    place = _places(len(embedded.rows), 3)[1]
    walked = pipeline.denoise_query([embedded.rows[place].source], NAMING_STEPS, NAMING_GUIDANCE_SCALE)
    rows = []
    for step in walked:
        noisy = torch.nn.functional.normalize(step.e_t.float().cpu(), dim=-1) @ embedded.e.T
        found = step.e_0_hat.float().cpu() @ embedded.e.T
        rows.append([f"t = {step.t_e}", *(_ranking(scores[0], embedded, place) for scores in (noisy, found))])
    html += heading("Naming this image") + img_tag(_small(embedded.rows[place]), embedded.captions[place])
    html += html_table(
        ["step", "names nearest to the noisy query e_t", "names nearest to the prediction of e_0"], rows
    )
    return "The two chains, walking", note(
        "The same network walks an image's latent from noise under a caption, and a caption's embedding from noise "
        "under an image."
    ) + html


def training_curves(log: Sequence[Line]) -> Section:
    """Draw the training log."""
    drawn = [
        curves(log, ["generation", "validation_generation"], "generation loss (mean squared error)"),
        curves(log, ["alignment", "validation_alignment"], "alignment loss (nats)"),
        curves(log, ["image_to_text_recall_10", "text_to_image_recall_10"], "recall at 10, validation"),
    ]
    return "How it was trained", "".join(drawn)


@torch.no_grad()
def generation_chain(pipeline: PalindiffPipeline, caption: str, seed: int) -> list[tuple[int, Image.Image]]:
    """Generate one caption and decode the latent at evenly spread steps: (t, image), from noise to the end."""
    kept: list[tuple[int, Tensor]] = []
    shown = _places(GENERATION_STEPS, NUM_STRIP_STEPS)

    def keep(_: object, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in shown:
            kept.append((int(t), tensors["latents"].clone()))
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        caption,
        num_inference_steps=GENERATION_STEPS,
        guidance_scale=GENERATION_GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=keep,
        output_type="latent",
    )
    scale = pipeline.vae.config.scaling_factor
    return [(t, to_image(pipeline.vae.decode(z / scale).sample[0])) for t, z in kept]


def _ranking(scores: Tensor, embedded: Embedded, place: int) -> str:
    ranked = _best(scores, 3)
    rank = int((scores > scores[place]).sum()) + 1
    told = names([(embedded.captions[i], float(scores[i])) for i in ranked], embedded.captions[place])
    return f"{told}<br><small>the right name is number {rank}</small>"


def _best(scores: Tensor, number: int) -> list[int]:
    return scores.topk(number).indices.tolist()


def _places(total: int, number: int, offset: int = 0) -> list[int]:
    """Evenly spread places; an offset takes neighbours of them."""
    return [min(int(place) + offset, total - 1) for place in torch.linspace(0, total - 1, number).round()]


def _small(row: CaptionedImage) -> Image.Image:
    return decode_image(row.source)


def _plain(caption: str) -> str:
    return caption.partition(" emoji of ")[2] or caption
