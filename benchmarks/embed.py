"""Embedding a large set: what kills lose and repeat, and the throughput of two processes against one.

Run: python benchmarks/embed.py [--images 20000] [--timed-images 6144] [--rounds 3] [--results results/embed.json]

Images of random colours are written as tar files. `palindiff embed` embeds them with the bundled model: in two
processes, and in two that are killed twice (SIGKILL, both of them) and started again. Their embeddings are
compared row by row. Then one process and two, each of one thread, embed a part of the set in turn.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from palindiff.evaluation.results import Row, write_results
from palindiff.inference.embeddings import SHARD_ROWS, read_all

ROWS_PER_TAR = 4096
SIDE_PX = 64


def write_tars(folder: Path, num_images: int) -> Path:
    """Write images of random colours with captions in the webdataset layout."""
    folder.mkdir()
    for start in range(0, num_images, ROWS_PER_TAR):
        with tarfile.open(folder / f"{start:08d}.tar", "w") as tar:
            for number in range(start, min(start + ROWS_PER_TAR, num_images)):
                colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                stream = io.BytesIO()
                Image.fromarray(colours).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(stream, "PNG")
                for suffix, data in (("png", stream.getvalue()), ("txt", f"image {number}".encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def start(data: Path, output: Path, num_processes: int) -> list[subprocess.Popen[bytes]]:
    """Start `palindiff embed` in processes of one thread each, with the variables that a launcher sets."""
    command = [sys.executable, "-m", "palindiff.cli.main", "embed", str(data), "--output", str(output)]
    shares = [{"RANK": str(rank), "WORLD_SIZE": str(num_processes)} for rank in range(num_processes)]
    return [
        subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | share, stdout=subprocess.DEVNULL)
        for share in shares
    ]


def wait_for_shards(output: Path, number: int) -> None:
    """Wait until at least `number` shards are written."""
    while len(list(output.glob("img_emb/img_emb_*.npy"))) < number:
        time.sleep(0.2)


def finish(run: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all processes of a run.

    Raises: RuntimeError if one fails.
    """
    for process in run:
        if process.wait():
            raise RuntimeError(f"`{' '.join(map(str, process.args))}` ended with {process.returncode}.")  # type: ignore[union-attr]


def compare_after_kills(data: Path, folder: Path) -> Row:
    """Embed without and with kills -> rows, rows found more or less than once, and whether all are bitwise equal."""
    finish(start(data, folder / "whole", 2))
    num_shards = len(list((folder / "whole").glob("img_emb/*.npy")))
    for share in (0.25, 0.6):
        run = start(data, folder / "killed", 2)
        wait_for_shards(folder / "killed", round(share * num_shards))
        for process in run:
            process.kill()
        for process in run:
            process.wait()
    before = len(list((folder / "killed").glob("img_emb/img_emb_*.npy")))
    finish(start(data, folder / "killed", 2))
    (expected, columns), (found, found_columns) = read_all(folder / "whole"), read_all(folder / "killed")
    rows = found_columns["row"]
    return {
        "measured": "kills",
        "images": len(expected),
        "lost": len(set(columns["row"]) - set(rows)),
        "repeated": len(rows) - len(set(rows)),
        "is_equal": bool(expected.shape == found.shape and (expected == found).all()),
        "shards_before_the_last_start": before,
        "shards": num_shards,
    }


def compare_processes(data: Path, folder: Path, num_images: int, rounds: int) -> Row:
    """Time one process and two in turn, from their first shards to the last: starting and ending are left out."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for round_ in range(rounds):
        for num_processes in (1, 2) if round_ % 2 else (2, 1):
            output = folder / f"timed-{round_}-{num_processes}"
            run = start(data, output, num_processes)
            wait_for_shards(output, num_processes)
            began = time.perf_counter()
            wait_for_shards(output, -(-num_images // SHARD_ROWS))
            elapsed_s = time.perf_counter() - began
            finish(run)
            times[num_processes].append(elapsed_s / (num_images - SHARD_ROWS * num_processes))
            print(num_processes, times[num_processes][-1], flush=True)
    one, two = (statistics.median(each) for each in times.values())
    return {
        "measured": "throughput",
        "images": num_images,
        "one_process_images_per_s": round(1 / one, 1),
        "two_processes_images_per_s": round(1 / two, 1),
        "two_over_one": round(one / two, 2),
    }


def main() -> None:
    """Run both comparisons, print the rows, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="images of the run that is killed [default: 20000]")
    parser.add_argument("--timed-images", type=int, default=6144, help="images of each timed run [default: 6144]")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side [default: 3]")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [
            compare_processes(write_tars(folder / "timed", args.timed_images), folder, args.timed_images, args.rounds),
            compare_after_kills(write_tars(folder / "data", args.images), folder),
        ]
    print(json.dumps(rows, indent=2))
    if args.results:
        command = f"python benchmarks/embed.py --images {args.images} --timed-images {args.timed_images}"
        settings = {"images": args.images, "timed_images": args.timed_images, "rounds": args.rounds, "threads": 1}
        write_results(
            args.results, rows, f"{command} --rounds {args.rounds}", settings, 0, time.perf_counter() - began
        )


if __name__ == "__main__":
    main()
