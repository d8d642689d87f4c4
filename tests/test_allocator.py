"""allocator.py: memory that a process frees is reused."""

import os
import subprocess
import sys

import pytest

FREE_AND_FAULT = """
import resource, sys, torch
from palindiff.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
convs = [torch.nn.Conv2d(width, 16, 3, padding=1) for width in (3, 16)]
layers = torch.nn.Sequential(convs[0], torch.nn.GroupNorm(8, 16), torch.nn.SiLU(), convs[1], torch.nn.GroupNorm(8, 16))
faults = []
with torch.no_grad():
    for _ in range(8):
        layers(torch.ones(32, 3, 64, 64))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[2])  # the heap grows in the first calls
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
