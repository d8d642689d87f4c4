"""What the demo page shows last: retrieval, denoising step by step, training curves.

Here: which images and captions, and what the model makes of them. Not here: what the page opens with
(`demo_groups.py`), HTML (`demo_page.html`).
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palindiff.data.images import decode_image, to_image
from palindiff.experiments.demo_page import Figure, RankedName
from palindiff.experiments.emoji_subsets import evenly
from palindiff.experiments.naming_protocol import EmbeddedConcepts
from palindiff.experiments.plots import Line, line_plot
from palindiff.experiments.shown_captions import without_style
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.inference.pipeline import PalindiffPipeline

NUM_QUERIES = 4  # captions in each style
NUM_CANDIDATES = 5  # best names, or images, of each
NUM_DENOISING_STEPS = 8  # steps shown of a generated image
DENOISED_CAPTION = "a flat emoji of a red heart"
PLOTS = {
    "generation loss (mean squared error)": ["generation", "validation_generation"],
    "alignment loss (nats)": ["alignment", "validation_alignment"],
    "recall at 10, validation": ["image_to_text_recall_10", "text_to_image_recall_10"],
}


def retrieved_images(concepts: EmbeddedConcepts) -> list[tuple[str, list[Figure]]]:
    """Find the best images for evenly spread captions of unseen concepts."""
    found = []
    for i in evenly(range(len(concepts.rows)), 2 * NUM_QUERIES + 1)[1::2]:  # between those that are named above
        scores = concepts.scores[:, i]
        best = [
            Figure(decode_image(concepts.rows[j].source), f"{float(scores[j]):.2f}", concepts.captions[j], j == i)
            for j in scores.topk(NUM_CANDIDATES).indices.tolist()
        ]
        found.append((concepts.captions[i], best))
    return found


def naming_steps(pipeline: PalindiffPipeline, concepts: EmbeddedConcepts) -> dict[str, Any]:
    """Name one image: at each step the names nearest to the noisy query e_t, and to the prediction of e_0.

    `cosine` compares the first prediction with the last: 1 means that more steps change nothing.
    """
    i = evenly(range(len(concepts.rows)), 3)[1]
    denoised, steps = list(pipeline.denoise_query([concepts.rows[i].source])), []
    for step in denoised:
        queries = {"noisy": torch.nn.functional.normalize(step.e_t.float(), dim=-1), "predicted": step.e_0_hat.float()}
        scores = {name: (e.cpu() @ concepts.e.T)[0] for name, e in queries.items()}  # (1, d_e) -> (n,)
        ranks = {name: int((each > each[i]).sum()) + 1 for name, each in scores.items()}
        ranked = {name: (_ranked(concepts, i, each, 3), ranks[name]) for name, each in scores.items()}
        steps.append({"t": step.t_e, **ranked})
    cosine = torch.cosine_similarity(denoised[0].e_0_hat.float(), denoised[-1].e_0_hat.float()).item()
    return {"image": _figure(concepts, i), "steps": steps, "cosine": cosine}


def training_curves(log: Sequence[Line]) -> list[str]:
    """Plot the training log; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    return [line_plot(log, columns, title) for title, columns in PLOTS.items()]


@torch.no_grad()
def denoised_images(pipeline: PalindiffPipeline, caption: str, seed: int) -> list[Figure]:
    """Generate one caption and decode the latent at evenly spread steps, from noise to the end."""
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
    images = [to_image(pipeline.vae.decode(z / scale).sample[0]) for _, z in kept]
    return [Figure(image, f"t = {t}", f"{caption}, at t = {t}") for (t, _), image in zip(kept, images, strict=True)]


def _figure(concepts: EmbeddedConcepts, i: int) -> Figure:
    caption = concepts.captions[i]
    return Figure(decode_image(concepts.rows[i].source), without_style(caption), caption)


def _ranked(concepts: EmbeddedConcepts, i: int, scores: Tensor, number: int) -> list[RankedName]:
    """List the best names of image i by their scores (n,)."""
    best, captions = scores.topk(number).indices.tolist(), concepts.captions
    return [RankedName(captions[j], float(scores[j]), captions[j] == captions[i]) for j in best]
