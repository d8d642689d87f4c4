"""Image embeddings on disk: computed as a stream in shards, and read again.

A folder holds `embeddings.json`, which says what was embedded by what, and for each shard `img_emb/img_emb_N.npy`
(float32, a row for each image) and `metadata/metadata_N.parquet`, as clip-retrieval names them. A shard is written
whole or not at all, so a killed run resumes with the shards that are missing, and processes share them.
Here: computing and reading shards. Not here: the model (`embedder.py`), decoding (`data/squares.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.utils.data import DataLoader

from palindiff.atomic import atomic_file, claim_folder
from palindiff.data.entries import Entry
from palindiff.data.images import Fit, ImageFileError, to_pixels
from palindiff.data.index import index_in_memory
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import ImageSet
from palindiff.data.squares import SquareImages
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.embedder import Embedder

INDEX_FILE = "embeddings.json"
NAMES = {"model", "source", "split"}  # values of the index that change no embedding
SHARD_ROWS = 1024
Progress = Callable[[str, int, int], None]  # what is computed, how many are done, of how many


class EmbeddingIndex(BaseModel, frozen=True, extra="forbid"):
    """What a folder of embeddings holds; two folders with equal values, NAMES apart, hold equal embeddings."""

    model: str  # as it was named
    model_fingerprint: str
    source: str
    split: str  # as it was asked for
    source_fingerprint: str
    options: dict[str, int | float]  # of `encode_image`; empty for a model without any
    fit: Fit
    size_px: int
    num_rows: int  # of the source; images that cannot be read are left out of the shards
    shard_rows: int = SHARD_ROWS


@dataclass(frozen=True)
class EmbeddingFolder:
    """A folder of embeddings, complete or not."""

    path: Path
    index: EmbeddingIndex

    @classmethod
    def open(cls, path: Path) -> "EmbeddingFolder":
        """Open a folder that exists.

        Raises: FileNotFoundError or ValueError if it is not a folder of embeddings.
        """
        file = path / INDEX_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"`{path}` has no {INDEX_FILE}. Expected a folder of embeddings. Run `palindiff embed` to write one."
            )
        try:
            return cls(path, EmbeddingIndex.model_validate_json(file.read_bytes()))
        except ValidationError as error:
            raise ValueError(
                f"`{file}` cannot be read ({error.errors()[0]['msg']}). Expected what `palindiff embed` writes. "
                "Remove the folder, and embed the images again."
            ) from error

    def prepare(self) -> None:
        """Create the folder, or check that the one that exists is of the same embeddings.

        Raises: ValueError that names what differs; OSError if it cannot be written.
        """
        claim_folder(self.path, INDEX_FILE, self.index.model_dump_json(indent=2) + "\n", "Embeddings")
        found, wanted = (each.model_dump(exclude=NAMES) for each in (self.open(self.path).index, self.index))
        if changed := [f"{name} {found[name]} -> {wanted[name]}" for name in wanted if found[name] != wanted[name]]:
            raise ValueError(
                f"`{self.path}` holds other embeddings: {'; '.join(changed)}. Expected the same model, images and "
                "options, to resume. Use another folder, or remove this one."
            )

    @cached_property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        rows = range(self.index.num_rows)
        return [rows[start : start + self.index.shard_rows] for start in rows[:: self.index.shard_rows]]

    def has_shard(self, number: int) -> bool:
        """Whether a shard is complete: its embeddings are written last."""
        return self._embeddings_file(number).is_file()

    def is_complete(self) -> bool:
        """Whether all shards are."""
        return all(self.has_shard(number) for number in range(len(self.shards)))

    def write_shard(self, number: int, vectors: np.ndarray, metadata: Mapping[str, Sequence[Any]]) -> None:
        """Write a shard: vectors (n, d) float32, and n values of each column of the metadata."""
        for file, write in (
            (self._metadata_file(number), lambda path: pq.write_table(pa.table(dict(metadata)), path)),
            (self._embeddings_file(number), lambda path: _save(path, vectors)),
        ):
            file.parent.mkdir(exist_ok=True)
            for rest in file.parent.glob(f".{file.name}.*"):  # of a killed run
                rest.unlink(missing_ok=True)
            with atomic_file(file) as temporary:
                write(temporary)

    def read(self) -> Iterator[tuple[Tensor, dict[str, list[Any]]]]:
        """Read shard by shard: (n, d) float32 and the columns of the metadata.

        Raises: ValueError if shards are missing, or a value is not finite.
        """
        missing = [number for number in range(len(self.shards)) if not self.has_shard(number)]
        if missing:
            raise ValueError(
                f"`{self.path}` has {len(self.shards) - len(missing):,} of {len(self.shards):,} shards. Expected all: "
                "the run that writes them was stopped. Rerun its command to resume."
            )
        for number in range(len(self.shards)):
            vectors, columns = self._read_shard(number)
            if not len(vectors):  # none of its images can be read
                continue
            if not vectors.isfinite().all():
                raise ValueError(
                    f"`{self._embeddings_file(number)}` has values that are not finite. Expected embeddings of unit "
                    "length. Remove the file and embed the images again, in float32 if the model overflows."
                )
            yield vectors, columns

    def _read_shard(self, number: int) -> tuple[Tensor, dict[str, list[Any]]]:
        try:
            vectors = torch.from_numpy(np.load(self._embeddings_file(number), allow_pickle=False))
            return vectors, pq.read_table(self._metadata_file(number)).to_pydict()
        except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are among these
            raise ValueError(
                f"Shard {number:05d} of `{self.path}` cannot be read ({type(error).__name__}). Expected embeddings "
                "and metadata as they were written. Remove both files, and rerun the command that wrote them."
            ) from error

    def _embeddings_file(self, number: int) -> Path:
        return self.path / "img_emb" / f"img_emb_{number:05d}.npy"

    def _metadata_file(self, number: int) -> Path:
        return self.path / "metadata" / f"metadata_{number:05d}.parquet"


def embedding_folder(
    path: Path, model: Embedder, name: str, rows: ImageSet, split: str, options: Mapping[str, int | float], fit: Fit
) -> EmbeddingFolder:
    """Describe the folder of a model's embeddings of a set; nothing is written."""
    index = EmbeddingIndex(
        model=name,
        model_fingerprint=model.fingerprint,
        source=rows.source,
        split=split,
        source_fingerprint=rows.fingerprint,
        options=dict(options),
        fit=fit,
        size_px=model.image_size_px,
        num_rows=len(rows),
    )
    return EmbeddingFolder(path, index)


def _save(path: Path, vectors: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, vectors)


def read_all(path: Path) -> tuple[Tensor, dict[str, list[Any]]]:
    """Read all shards of a folder.

    Shapes: -> (n, d) float32, and n values of each column of the metadata.
    Raises: as `EmbeddingFolder.open` and `EmbeddingFolder.read`.
    """
    shards = list(EmbeddingFolder.open(path).read())
    if not shards:
        raise ValueError(f"`{path}` holds no embedding. Expected one or more. Embed images that can be read.")
    vectors, columns = zip(*shards, strict=True)
    return torch.cat(vectors), {name: [each for part in columns for each in part[name]] for name in columns[0]}


def rows_of(path: Path) -> ImageSet:
    """Return the rows that a folder holds embeddings of, in its order; their images cannot be read.

    Raises: as `read_all`.
    """
    _, columns = read_all(path)
    texts = zip(columns["image_path"], columns["captions"], columns["label"], strict=True)
    index = index_in_memory(
        Entry(name, name, captions=tuple(captions), label=label) for name, captions, label in texts
    )
    kept = [EmbeddingFolder.open(path).index.source_fingerprint, columns["row"]]
    return ImageSet(index, None, str(path), hashlib.sha256(json.dumps(kept).encode()).hexdigest(), {})


def check_made_by(path: Path, model: Embedder, options: Mapping[str, int | float]) -> None:
    """Refuse a folder of embeddings of another model, or made with other options.

    Raises: ValueError; as `EmbeddingFolder.open`.
    """
    index = EmbeddingFolder.open(path).index
    if index.model_fingerprint != model.fingerprint:
        raise ValueError(
            f"The embeddings in `{path}` are of the model `{index.model}`, whose weights are not those of --model. "
            "Expected one model for both. Pass that model, or embed the images again."
        )
    if index.options != options:
        raise ValueError(
            f"The embeddings in `{path}` were made with {index.options}, and {dict(options)} was asked for. Expected "
            "the same. Pass the same --steps, --guidance-scale and --seed, or embed the images again."
        )


@torch.no_grad()
def embed_images(
    model: Embedder,
    rows: ImageSet,
    folders: Sequence[EmbeddingFolder],
    on_bad: OnBad = "refuse",
    batch_size: int = IMAGES_AT_ONCE,
    num_workers: int = 0,
    progress: Progress = lambda what, done, total: None,
    process: int = 0,
    num_processes: int = 1,
) -> dict[int, str]:
    """Embed images into several folders, whose options differ; each image is decoded and read once for all of them.

    Only missing shards are computed. Images that cannot be read are left out if `on_bad` is "skip".

    Returns: rows that this call left out, and why.
    Raises: ImageFileError if an image cannot be read and `on_bad` is "refuse"; finished shards stay.
    """
    for folder in folders:
        folder.prepare()
    first = folders[0]
    own = range(len(first.shards))[process::num_processes]
    missing = [number for number in own if not all(folder.has_shard(number) for folder in folders)]
    if not missing:
        return {}
    batches = {number: _split(first.shards[number], batch_size) for number in missing}
    total = sum(len(first.shards[number]) for number in own)
    done = total - sum(len(first.shards[number]) for number in missing)
    loader = DataLoader(
        SquareImages(rows, first.index.size_px, first.index.fit),
        batch_sampler=[list(batch) for number in missing for batch in batches[number]],
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
    )
    loaded = iter(loader)
    unreadable: dict[int, str] = {}
    for number in missing:
        kept: list[int] = []
        lacking = [folder for folder in folders if not folder.has_shard(number)]
        found: list[list[Tensor]] = [[] for _ in lacking]
        for batch in batches[number]:
            images, faults = next(loaded)
            unreadable |= {row: fault for row, fault in zip(batch, faults, strict=True) if fault}
            if any(faults) and on_bad == "refuse":
                raise ImageFileError(f"{next(filter(None, faults))} Finished shards stay; rerun to resume.")
            is_good = torch.tensor([not fault for fault in faults])
            if is_good.any():
                embedded = model.embed_pixels(to_pixels(images[is_good]), [folder.index.options for folder in lacking])
                for of_folder, e_hat in zip(found, embedded, strict=True):
                    of_folder.append(e_hat.float().cpu())
                kept += [row for row, fault in zip(batch, faults, strict=True) if not fault]
            done += len(batch)
            progress("images embedded", done, total)
        for folder, of_folder in zip(lacking, found, strict=True):
            vectors = torch.cat(of_folder).numpy() if of_folder else np.zeros((0, 0), np.float32)
            folder.write_shard(number, vectors, rows.records(kept))
    return unreadable


def _split(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
