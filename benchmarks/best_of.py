"""Whether the best of 4 generated images, chosen by the model's own naming, is better than a random one of them.

Run: python benchmarks/best_of.py --data data/emoji --judge FOLDER [--model emoji] [--styles flat outlined]
     [--num-captions 200] [--results results/best_of.json]

Captions of unseen concepts, evenly spread over each style. FOLDER is a CLIP that judges the images, such as the folder
`clip` in a run of `palindiff train` with the contrastive objective. It ranks all captions of the style for each image;
recall@10 is the share of images whose own caption is among the first 10. The 4 images of a caption are generated once
and chosen from three times: at random (the mean over all 4), by the model as `best_of` does, and by the judge's own
rank, which no choice exceeds. A fourth row is one image with 4 times the steps. `difference` is to the random choice,
paired by caption, with a bootstrap interval. The row `real_images` shows what the judge finds of the set's images.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.cli.model_option import open_model
from palindiff.data.emoji import STYLES
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.results import Row, script_command, write_results
from palindiff.evaluation.retrieval import best_ranks
from palindiff.experiments.emoji_protocol import METRIC_STEPS
from palindiff.experiments.emoji_subsets import concept_images, evenly
from palindiff.inference.best_of import candidate_latents, decode_latents, prompt_cosines
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE
from palindiff.inference.pipeline import PalindiffPipeline

K = 10
NUM_CANDIDATES = 4
NUM_CAPTIONS = 200
ALL_STYLES = "all"


@dataclass(frozen=True)
class Candidates:
    """Ranks of the judge for the images of n captions, and the model's own scores; rank 0 is first."""

    ranks: Tensor  # (n, NUM_CANDIDATES) int64
    own_scores: Tensor  # (n, NUM_CANDIDATES) float
    ranks_of_more_steps: Tensor  # (n,) int64
    ranks_of_real: Tensor  # (m,) int64, of the style's real images
    num_captions: int  # that the judge ranks


def judge_ranks(
    judge: ClipModel, images: Sequence[Image.Image], own: Sequence[str], captions: Sequence[str]
) -> Tensor:
    """Rank each image's own caption among all. Shapes: n images, n own captions -> (n,) int64, 0 is first.

    Raises: ValueError if the judge's scores are not finite.
    """
    scores = (judge.encode_image(list(images)) @ judge.encode_text(list(captions)).T).cpu()  # (n, k)
    return best_ranks(scores, torch.tensor([[caption == other for other in captions] for caption in own]))


def measure_style(
    pipeline: PalindiffPipeline, judge: ClipModel, data_dir: Path, style: str, num_captions: int, steps: int
) -> Candidates:
    """Generate the candidates of a style once, and one image with as many steps as all of them together.

    Caption i has the seeds from NUM_CANDIDATES x i on; the first is that of the image with more steps.

    Raises: ValueError if the judge finds real images no better than by chance, or as `judge_ranks`.
    """
    rows = concept_images(data_dir, "test", style)
    captions = [row.captions[0] for row in rows]
    real = judge_ranks(judge, [row.source for row in rows], captions, captions)
    if (found := float((real < K).float().mean())) <= K / len(captions):
        raise ValueError(
            f"The judge finds {found:.1%} of the real images of the style `{style}` by its first {K} captions. "
            f"Expected more than chance, {K / len(captions):.1%}. Use a judge that was trained on emoji."
        )
    chosen = evenly(captions, num_captions)
    pipeline.set_progress_bar_config(disable=True)
    images, scores, longer = [], [], []
    for number, caption in enumerate(chosen):
        seeds = range(NUM_CANDIDATES * number, NUM_CANDIDATES * (number + 1))
        z = candidate_latents(pipeline, caption, seeds, GENERATION_GUIDANCE_SCALE, steps)
        scores.append(prompt_cosines(pipeline, z, caption).cpu())
        images += decode_latents(pipeline, z)
        more = candidate_latents(pipeline, caption, seeds[:1], GENERATION_GUIDANCE_SCALE, NUM_CANDIDATES * steps)
        longer += decode_latents(pipeline, more)
        if (number + 1) % 20 == 0:
            print(f"{style}: {number + 1} of {len(chosen)} captions", flush=True)
    own = [caption for caption in chosen for _ in range(NUM_CANDIDATES)]
    ranks = judge_ranks(judge, images, own, captions).unflatten(0, (-1, NUM_CANDIDATES))  # (n*4,) -> (n, 4)
    return Candidates(ranks, torch.stack(scores), judge_ranks(judge, longer, chosen, captions), real, len(captions))


def rows_of(style: str, styles: Sequence[Candidates]) -> list[Row]:
    """Measure each choice over the captions of some styles, with its difference to a random choice."""
    hits = {name: torch.cat([hits_of(each)[name] for each in styles]) for name in hits_of(styles[0])}
    real = torch.cat([each.ranks_of_real < K for each in styles]).double()
    num_captions = [each.num_captions for each in styles for _ in range(len(each.ranks))]
    chance = sum(K / number for number in num_captions) / len(num_captions)
    rows: list[Row] = []
    for choice, of_choice in hits.items():
        difference = of_choice - hits["random"]
        low, high = bootstrap_interval(difference)
        compared: Row = {"difference": float(difference.mean()), "ci_low": low, "ci_high": high}
        if choice == "random":
            compared = dict.fromkeys(compared)
        rows.append(_row(style, choice, of_choice, chance) | compared)
    return [*rows, _row(style, "real_images", real, chance) | dict.fromkeys(("difference", "ci_low", "ci_high"))]


def hits_of(found: Candidates) -> dict[str, Tensor]:
    """Say for each caption whether the judge finds it by the chosen image, (n,) float64; at random, the mean."""
    hits = (found.ranks < K).double()  # (n, 4)
    own = found.own_scores.argmax(dim=1, keepdim=True)  # (n, 4) -> (n, 1)
    return {
        "random": hits.mean(dim=1),
        "own": hits.gather(1, own)[:, 0],
        "judge": hits.amax(dim=1),
        "more_steps": (found.ranks_of_more_steps < K).double(),
    }


def _row(style: str, choice: str, hits: Tensor, chance: float) -> Row:
    return {"style": style, "choice": choice, "k": K, "recall": float(hits.mean()), "chance": chance, "n": len(hits)}


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure each style, and all of them together if there are several."""
    pipeline, judge = open_model(args.model), ClipModel.from_pretrained(args.judge)
    judge.to(pipeline.device)
    found = {
        style: measure_style(pipeline, judge, args.data, style, args.num_captions, args.steps) for style in args.styles
    }
    rows = [row for style, each in found.items() for row in rows_of(style, [each])]
    return rows + (rows_of(ALL_STYLES, list(found.values())) if len(found) > 1 else [])


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="bundled model, or a checkpoint folder (default: emoji)")
    parser.add_argument("--data", type=Path, required=True, help="folder that `palindiff data emoji` wrote")
    parser.add_argument("--judge", type=Path, required=True, help="folder of a contrastive model")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), help="styles that the model knows")
    parser.add_argument("--num-captions", type=int, default=NUM_CAPTIONS, help="captions of each style (default: 200)")
    parser.add_argument("--steps", type=int, default=METRIC_STEPS, help="DDIM steps of each of the 4 (default: 20)")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = measure(args)
    for row in rows:
        print(row)
    if args.results:
        command = script_command(__file__)
        settings = {"model": args.model, "judge": args.judge.name, "candidates": NUM_CANDIDATES, "steps": args.steps}
        write_results(args.results, rows, command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
