"""Where a number comes from: the commit, the machine and the versions of packages.

Here: these facts. Not here: the files that hold them (`results.py`, `records.py`).
"""

import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PACKAGES = ("palindiff", "torch", "diffusers", "transformers", "accelerate", "numpy")
RESULTS_FOLDER = "results"


class Machine(BaseModel, frozen=True, extra="forbid"):
    """The machine a result was measured on."""

    cpu: str
    cores: int  # available to the process
    memory_gib: float | None
    accelerator: str | None  # its name, with their number if there are several


def facts_of_this_run() -> dict[str, Any]:
    """Return commit, machine and versions, by the names that result files and records give them."""
    commit, is_dirty = git_state(Path(__file__).parents[1])
    versions = {name: next((each.version for each in distributions(name=name)), None) for name in PACKAGES}
    return {"commit": commit, "is_dirty": is_dirty, "machine": describe_machine(), "versions": versions}


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that tracks `folder`, and whether it has changes; (None, None) outside one.

    A package installed inside an unrelated checkout is not tracked there, so that checkout's commit says nothing about
    it. The results folder is ignored: writing a first result would mark the second as dirty.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "--", "."):
        return None, None
    changes = _git(folder, "status", "--porcelain", "--", ":/", f":(exclude,top){RESULTS_FOLDER}")
    return commit, bool(changes)


def describe_machine() -> Machine:
    """Describe processor, cores, memory and accelerator, without the machine's name."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    has_pages = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ())  # not on Windows
    return Machine(
        cpu=names[0].strip() if names else platform.processor() or platform.machine(),
        cores=num_cores(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1) if has_pages else None,
        accelerator=_accelerator(),
    )


def num_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, no folder, or no checkout
        return None
    return done.stdout.strip()


def _accelerator() -> str | None:
    import torch  # here, so that rendering a document does not import it

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return None
    module = torch.get_device_module(device)
    name = module.get_device_name(0) if hasattr(module, "get_device_name") else device.type
    count = torch.accelerator.device_count()
    return f"{count} x {name}" if count > 1 else str(name)
