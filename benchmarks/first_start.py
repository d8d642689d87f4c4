"""Time from `palindiff train` to its first step on images that were never encoded, against an older commit.

Run: python benchmarks/first_start.py --baseline WORKTREE --data data/emoji [--split train] [--rounds 3]
     [--results results/first_start.json]

WORKTREE is a checkout of the older commit (`git worktree add WORKTREE COMMIT`). Both sides run the recipe `emoji` with
an empty cache, one after the other in alternating order; a run is stopped when all features are computed. The rows
hold medians in seconds and their ratios. Then the VAE's encoder alone is timed and its moments are compared: as the
older commit uses it (batches of 64), as this one does, and in the memory format channels_last.
"""

import argparse
import copy
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from palindiff.data.images import to_pixels
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.provenance import git_state
from palindiff.evaluation.results import Row, write_results
from palindiff.training.features.latent_cache import encode_moments
from palindiff.training.features.views import Squares
from palindiff.training.recipes.build_models import build_models
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe

OWN = Path(__file__).resolve().parents[1]
TRAIN = ("-m", "palindiff.cli.main", "train", "--recipe", "emoji", "--set", "data.caption_column=null")
PHASES = {"images": r"encoding (?:images|pictures): ", "captions": r"encoding captions: 1 of 1"}  # last line of each


def time_once(checkout: Path, arguments: list[str]) -> dict[str, float]:
    """Start a training with an empty cache -> seconds until all images are encoded, and until all captions are."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"PYTHONPATH": str(checkout / "src"), "PALINDIFF_CACHE": f"{folder}/cache"}
        command = [sys.executable, *TRAIN, "--output", f"{folder}/run", *arguments]
        began = time.perf_counter()
        run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                               env=os.environ | places)  # fmt: skip
        assert run.stderr is not None
        seconds: dict[str, float] = {}
        lines = []
        for line in run.stderr:
            lines.append(line)
            seconds |= {name: time.perf_counter() - began for name, last in PHASES.items() if re.search(last, line)}
            if "captions" in seconds:
                run.kill()
        run.wait()
        if seconds.keys() != PHASES.keys():
            raise RuntimeError(f"The training in `{checkout}` computed no features: {''.join(lines[-5:])}")
    return seconds


def encoders(vae: AutoencoderKL, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to encode all views of images, plain and mirrored -> (b, v, 2 orientations, 2 moments, ch, h, w)."""

    def of_older_commit(format_: torch.memory_format = torch.contiguous_format) -> Tensor:
        found = []
        for view in images.unbind(1):
            x = to_pixels(view).to(vae.dtype)
            for oriented in (x, x.flip(-1)):
                posterior = vae.encode(oriented.to(memory_format=format_)).latent_dist
                found.append(torch.stack([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor)
        return torch.stack(found, dim=1).unflatten(1, (images.shape[1], 2))

    def channels_last() -> Tensor:
        vae.to(memory_format=torch.channels_last)
        found = of_older_commit(torch.channels_last)
        vae.to(memory_format=torch.contiguous_format)
        return found

    return {"baseline": of_older_commit, "own": lambda: encode_moments(vae, images), "channels_last": channels_last}


@torch.no_grad()
def compare_encoders(data: DataConfig, rounds: int, num_images: int = 64) -> list[Row]:
    """Time the VAE's encoder alone on the first images, and compare moments in float32 with those in float64."""
    recipe = load_recipe(DiffDisRecipe, "emoji", [f"data.path={data.path}"])
    pipeline = build_models(recipe, seed=0)
    vae, size_px = pipeline.vae, pipeline.image_size_px
    squares = Squares(open_images(data), size_px, recipe.data.fit, recipe.views)
    images = torch.stack([squares[row][0] for row in range(num_images)])
    ways = encoders(vae, images)
    exact = encoders(copy.deepcopy(vae).double(), images)["baseline"]()
    found = {name: encode() for name, encode in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, encode in ways.items():
            began = time.perf_counter()
            encode()
            times[name].append(time.perf_counter() - began)
    rates = {name: exact[:, :, :, 0, 0, 0, 0].numel() / statistics.median(each) for name, each in times.items()}
    return [
        {
            "measured": "encoder",
            "encoder": name,
            "images_per_s": round(rates[name], 1),
            "over_baseline": round(rates[name] / rates["baseline"], 2),
            "largest_difference_from_float64": float(f"{float((found[name] - exact).abs().max()):.1e}"),
            "largest_difference_from_baseline": float(f"{float((found[name] - found['baseline']).abs().max()):.1e}"),
        }
        for name in ways
    ]


def main() -> None:
    """Time both sides alternately, compare the moments, print the rows, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="a checkout of the older commit")
    parser.add_argument("--data", required=True, help="the emoji data set, as `palindiff data emoji` writes it")
    parser.add_argument("--split", default="train", help="the encoded training split (default: train)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    sides = {"baseline": args.baseline.resolve(), "own": OWN}
    changes = [f"data.path={args.data}", f"data.split={args.split}"]
    arguments = [part for change in changes for part in ("--set", change)]
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(args.rounds):
        for side in list(sides)[:: 1 if round_ % 2 else -1]:
            times[side].append(time_once(sides[side], arguments))
            print(side, times[side][-1], flush=True)
    data = DataConfig(path=args.data, split=args.split)
    rows: list[Row] = []
    for until in PHASES:
        medians = {side: statistics.median(each[until] for each in times[side]) for side in sides}
        rows.append({
            "measured": "first start",
            "until_encoded": until,
            **{f"{side}_s": round(seconds, 1) for side, seconds in medians.items()},
            "baseline_over_own": round(medians["baseline"] / medians["own"], 2),
        })  # fmt: skip
    rows += compare_encoders(data, 5 * args.rounds)
    print(json.dumps(rows, indent=2))
    if args.results:
        commit, _ = git_state(args.baseline)
        settings = {"baseline": str(commit), "split": args.split, "images": len(open_images(data)),
                    "rounds": args.rounds, "threads": torch.get_num_threads()}  # fmt: skip
        command = f"python benchmarks/first_start.py --baseline WORKTREE --data data/emoji --split {args.split}"
        write_results(
            args.results, rows, f"{command} --rounds {args.rounds}", settings, 0, time.perf_counter() - began
        )


if __name__ == "__main__":
    main()
