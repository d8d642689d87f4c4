"""Peak memory of a training run, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"


def measured_bytes(recipe_file, changes):
    """The whole loop, glibc told to hand freed memory back; large enough that an interpreter's own does not count."""
    told = [part for each in changes for part in ("--set", each)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--here", "--recipe", str(recipe_file), *told],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout.splitlines()[-1])["bytes"]
    assert measured > 150e6
    return measured
