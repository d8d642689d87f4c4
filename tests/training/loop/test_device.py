"""device.py: memory that training on a CPU frees is reused; trackers and launches are tested where they are used."""

import os
import subprocess
import sys

import pytest

FREE_AND_FAULT = """
import resource, sys, torch
from palindiff.training.loop.device import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for _ in range(10):
    layers = [torch.ones(4_000_000) for _ in range(8)]  # 16 MB each
    del layers
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_reused_unless_the_environment_sets_the_allocator():
    def faults(mode, **environment):
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", FREE_AND_FAULT, mode]
        return int(subprocess.run(command, env=plain | environment, stdout=subprocess.PIPE, check=True).stdout)

    kept = faults("keep")
    assert 4 * kept < faults("plain")
    assert 4 * kept < faults("keep", MALLOC_MMAP_THRESHOLD_="65536")
