"""Ranks of 5,000 images and 25,000 captions both ways, without a matrix of all scores and from one: time, memory.

Run: python benchmarks/ranks.py [--images 5000] [--rounds 3] [--results results/ranks.json]

Each measurement is a process of its own, whose peak memory is that of the system's account, torch and embeddings
included. Both sides alternate, and their ranks are compared.
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.ranks import first_ranks_both_ways
from palindiff.evaluation.results import Row, write_results
from palindiff.evaluation.retrieval import best_ranks

CAPTIONS_EACH, WIDTH = 5, 512
KINDS = ("parts", "matrix")


def from_matrix(images: Tensor, captions: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Rank by the matrix of all scores, computed in the same precision."""
    scores = (images.double() @ captions.double().T).float()
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    positives[pairs[:, 0], pairs[:, 1]] = True
    return best_ranks(scores, positives), best_ranks(scores.T, positives.T)


def measure(kind: str, num_images: int) -> dict[str, float | str]:
    """Rank once in this process -> seconds, peak memory, and a hash of the ranks."""
    generator = torch.Generator().manual_seed(0)
    sizes = num_images, num_images * CAPTIONS_EACH
    images, captions = (F.normalize(torch.randn(n, WIDTH, generator=generator), dim=-1) for n in sizes)
    number = torch.arange(len(captions))
    pairs = torch.stack([number // CAPTIONS_EACH, number], dim=1)
    began = time.perf_counter()
    ranks = (first_ranks_both_ways if kind == "parts" else from_matrix)(images, captions, pairs)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in ranks)).hexdigest()
    return {"seconds": seconds, "peak_gb": peak, "ranks": digest}


def compare(num_images: int, rounds: int) -> list[Row]:
    """Measure both kinds in turn -> medians of time, the largest peak of memory, and whether ranks are equal."""
    found: dict[str, list[dict[str, float | str]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            command = [sys.executable, __file__, "--kind", kind, "--images", str(num_images)]
            found[kind].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(kind, found[kind][-1], flush=True)
    is_equal = len({each["ranks"] for of_kind in found.values() for each in of_kind}) == 1
    return [
        {
            "kind": kind, "images": num_images, "captions": num_images * CAPTIONS_EACH,
            "seconds": round(statistics.median(float(each["seconds"]) for each in of_kind), 2),
            "peak_gb": round(max(float(each["peak_gb"]) for each in of_kind), 2), "is_equal": is_equal,
        }
        for kind, of_kind in found.items()
    ]  # fmt: skip


def main() -> None:
    """Compare both kinds, or measure one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images, each with five captions [default: 5000]")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side [default: 3]")
    parser.add_argument("--kind", choices=KINDS, help="measure one side in this process")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(measure(args.kind, args.images)))
        return
    began = time.perf_counter()
    rows = compare(args.images, args.rounds)
    print(json.dumps(rows, indent=2))
    if args.results:
        settings = {"images": args.images, "rounds": args.rounds, "threads": torch.get_num_threads()}
        command = f"python benchmarks/ranks.py --images {args.images} --rounds {args.rounds}"
        write_results(args.results, rows, command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
