"""Latents of a set of images, computed once by the frozen VAE and cached on disk in parts.

Here: encoding, and the cache folder. Not here: decoding (`views.py`), reading rows for training (`dataset.py`), where
images come from (`data/`).
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader

from palindiff.data.images import Fit, ImageFileError, to_pixels
from palindiff.data.on_bad import OnBad
from palindiff.data.sources import ImageSet
from palindiff.evaluation.provenance import num_cores
from palindiff.models.fingerprint import fingerprint
from palindiff.training.features.dataset import ENCODE_BATCH, ImageFeatures, Progress, key_of
from palindiff.training.features.memmap import map_arrays, write_arrays
from palindiff.training.features.views import Squares, ViewConfig

LOADED_PIXELS = 2**23  # of the squares that a batch of rows holds decoded: 32 images of 512 px
CPU_PIXELS, GPU_PIXELS = 2**16, 2**21  # encoded at once: 16 images of 64 px; 32 images of 256 px
MIN_ROWS_FOR_WORKERS, MAX_WORKERS = 1_000, 8
PART_ROWS = 32_768  # images of one part; a killed run loses less than one part of each process
MOMENTS_FILE, UNREADABLE = "moments.npy", "unreadable"


@dataclass(frozen=True)
class LatentCache:
    """Cached latents of one set of images, encoded in parts: a killed run resumes with the next part.

    A set of at most PART_ROWS is one part. Parts are divided among the processes of a launch that share `cache_dir`;
    other runs wait for the part that one is encoding.
    """

    rows: ImageSet
    vae: AutoencoderKL
    size_px: int
    fit: Fit
    views: ViewConfig
    cache_dir: Path
    num_workers: int | None = 0  # processes that decode; None: see `default_workers`
    on_bad: OnBad = "refuse"  # an unreadable image: "refuse" the set, or "skip" the image and store why

    @cached_property
    def path(self) -> Path:
        """The cache folder, named by a hash of everything that the latents depend on; captions are not part of it."""
        crops = [self.views.crops, self.views.min_crop_area] if self.views.crops else []
        orientations = ["unflipped"] if self.views.flip == "none" else []
        fingerprints = [
            self.rows.images_fingerprint,
            self.size_px,
            self.fit,
            crops,
            fingerprint(self.vae),
            *orientations,
        ]
        return self.cache_dir / f"images-{key_of('images', *fingerprints)}"

    @property
    def parts(self) -> list[tuple[Path, range]]:
        """Each part's folder and its rows."""
        whole = range(len(self.rows))
        if len(whole) <= PART_ROWS:
            return [(self.path, whole)]
        parts = [whole[start : start + PART_ROWS] for start in whole[::PART_ROWS]]
        return [(self.path / f"rows-{part.start:09d}-{part.stop:09d}", part) for part in parts]

    def encode(self, progress: Progress, process: int = 0, num_processes: int = 1) -> None:
        """Encode the parts of this process that are not cached yet: images, their crops, all their mirror images.

        Raises: ImageFileError if an image cannot be read and `on_bad` is "refuse"; parts cached before stay.
        """
        own = self.parts[process::num_processes]
        missing = [(folder, part) for folder, part in own if not folder.exists()]
        total = sum(len(part) for _, part in own)
        before = total - sum(len(part) for _, part in missing)
        (locks := self.cache_dir / "locks").mkdir(parents=True, exist_ok=True)
        what = "encoding images" + (f", process {process + 1} of {num_processes}" if num_processes > 1 else "")
        for folder, part in missing:
            unreadable: dict[int, str] = {}

            def report(done: int, before: int = before) -> None:
                progress(what, before + done, total)

            with FileLock(locks / f"{self.path.name}-{part.start:09d}.lock"):
                if not folder.exists():  # else another run has encoded it meanwhile
                    write_arrays(folder, len(part), self._encoded(part, unreadable), report, {UNREADABLE: unreadable})
            before += len(part)

    def open(self, progress: Progress) -> tuple[ImageSet, ImageFeatures]:
        """Encode what is missing, then map all -> the rows whose images could be read, and their latents.

        Images that were skipped are reported.

        Raises: as `encode` and `read`.
        """
        self.encode(progress)  # does nothing, unless processes have no folder in common
        latents = self.read()
        rows = self.rows.without(latents.unreadable)
        if rows.left_out:
            progress(f"{rows.left_out} Used", len(rows), len(rows))
        return rows, latents

    def read(self) -> ImageFeatures:
        """Map all parts, and remove what killed runs left beside them.

        Raises: ImageFileError if an unreadable image was skipped before and `on_bad` is "refuse".
        """
        unreadable: dict[int, str] = {}
        for folder, _ in self.parts:
            if (note := folder / f"{UNREADABLE}.json").exists():
                faults = json.loads(note.read_text(encoding="utf-8"))
                unreadable |= {int(row): why for row, why in faults.items()}
            for rest in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(rest, ignore_errors=True)
        if unreadable and self.on_bad == "refuse":
            raise _unreadable(unreadable)
        return ImageFeatures(map_arrays([folder / MOMENTS_FILE for folder, _ in self.parts]), unreadable)

    def _encoded(self, part: range, unreadable: dict[int, str]) -> Iterator[dict[str, np.ndarray]]:
        """Moments of each batch; unreadable images are added to `unreadable` and encoded as black images.

        No batch spans two parts, so the number of processes changes no batch.
        """
        loaded = LOADED_PIXELS // ((1 + self.views.crops) * self.size_px**2)
        num_rows = max(1, min(ENCODE_BATCH, loaded))
        batches = [part[start : start + num_rows] for start in range(0, len(part), num_rows)]
        num_workers = self.num_workers
        if num_workers is None:
            num_workers = default_workers(len(part), self.vae.device.type)
        loader = DataLoader(
            Squares(self.rows, self.size_px, self.fit, self.views),
            batch_sampler=batches,  # type: ignore[arg-type]  # anything that yields row numbers
            num_workers=num_workers,
            multiprocessing_context="spawn" if num_workers else None,
        )
        for rows, (images, faults) in zip(batches, loader, strict=True):
            found = {row: fault for row, fault in zip(rows, faults, strict=True) if fault}
            if found and self.on_bad == "refuse":
                raise _unreadable(found)
            unreadable.update(found)
            yield {"moments": encode_moments(self.vae, images, self.views.flip != "none").half().numpy()}


def default_workers(num_rows: int, device_type: str) -> int:
    """One decoding process per core, shared by the launch's processes on this machine.

    None for small sets, and none beside a VAE on the CPU: they would take the cores that encode.
    """
    if device_type == "cpu" or num_rows < MIN_ROWS_FOR_WORKERS:
        return 0
    return max(1, min(MAX_WORKERS, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, images: Tensor, is_flipped_too: bool = True) -> Tensor:
    """Encode the views of images, plain and mirrored, in batches sized to the device.

    Shapes: images (b, v, 3, H, W) uint8 -> (b, v, 1 or 2 orientations, 2 moments, ch, h, w) float32, CPU.
    """
    size = max(1, (CPU_PIXELS if vae.device.type == "cpu" else GPU_PIXELS) // images[0, 0, 0].numel())
    found = []
    for view in images.unbind(1):
        x = to_pixels(view)
        for oriented in (x, x.flip(-1)) if is_flipped_too else (x,):
            parts = []
            for part in oriented.split(size):
                posterior = vae.encode(part.to(vae.device, vae.dtype)).latent_dist
                moments = torch.stack([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor
                parts.append(moments.float().cpu())
            found.append(torch.cat(parts))
    return torch.stack(found, dim=1).unflatten(1, (images.shape[1], -1))  # (b, v*o, ...) -> (b, v, o, ...)


def _unreadable(found: Mapping[int, str]) -> ImageFileError:
    first = found[min(found)]
    others = f" So are {len(found) - 1:,} more." if len(found) > 1 else ""
    return ImageFileError(f"{first}{others} With `data.on_bad: skip` such images are skipped and counted.")
