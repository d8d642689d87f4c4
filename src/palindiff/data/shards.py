"""Captioned images in tar archives of the webdataset layout, as img2dataset writes them.

Here: which archives a path names, and entries from their members. The images stay in the archives: only an index is
built, and `datasets` caches it on disk. The webdataset reader of `datasets` would copy every image, and stop without
a name at the first member that it cannot read.
"""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import Any, BinaryIO

from datasets import Dataset

from palindiff.data import entries
from palindiff.data.entries import Entry, RowFault
from palindiff.data.formats import HEADER_BYTES, IMAGE_SUFFIXES, find_format, unread_format
from palindiff.data.index import index_on_disk
from palindiff.data.samples import MAX_TEXT_BYTES, TEXT_KINDS, SampleReading

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: str) -> bool:
    """Whether a path stands for several: with `*`, `?`, `[...]` or `{...}`."""
    return any(sign in path for sign in "*?[{")


def expand_pattern(pattern: str) -> list[Path]:
    """List the files of a pattern: `{00000..00331}` and `{a,b}` must all exist, `*` must match something.

    Raises: FileNotFoundError.
    """
    if Path(pattern).exists():  # the signs belong to the name
        return [Path(pattern)]
    found: list[Path] = []
    for each in _expand_braces(pattern):
        matches = sorted(glob.glob(each))
        if not matches:
            raise FileNotFoundError(
                f"`{each}` of the pattern `{pattern}` does not exist. Expected every archive that the pattern names. "
                "Fix the pattern, or download the missing archive."
            )
        found += map(Path, matches)
    return list(dict.fromkeys(found))  # once each, even if two parts of the pattern match it


def _expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; every combination of several braces."""
    if (braces := _BRACES.search(pattern)) is None:
        return [pattern]
    inside = braces[1].split(",")
    if ends := _RANGE.fullmatch(braces[1]):
        width = len(ends[1]) if ends[1].startswith("0") else 0
        inside = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for each in inside for expanded in _expand_braces(before + each + after)]


def index_tars(tars: Sequence[Path], reading: SampleReading) -> Dataset:
    """Index archives, or map the cached index of the same archives and reading."""
    states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    fingerprints = [states, asdict(reading), sorted(reading.repeated_names)]
    return index_on_disk(scan_tars, {"tars": tars, "reading": reading}, fingerprints)


def scan_tars(tars: Sequence[Path], reading: SampleReading) -> Iterator[Entry]:
    """Yield an entry for each sample, and one for each archive that is damaged or empty."""
    for tar in tars:
        num_samples = 0
        try:
            with tar.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                for key, members in groupby(_members(archive, stream), key=itemgetter(0)):
                    # A damaged archive raises here: its last sample may be incomplete.
                    for name, sample in _samples(key, [member for _, member in members]):
                        num_samples += 1
                        yield Entry.read(f"`{name}` in {tar.name}", _read_sample, tar, stream, sample, reading)
            if not num_samples:
                expected = "expected KEY.jpg with KEY.txt"
                yield Entry(f"`{tar.name}`", fault="archive without samples", found=expected)
        except (tarfile.TarError, OSError) as error:
            found = f"{error}; expected an uncompressed tar"
            yield Entry(f"`{tar.name}`", fault="archive cannot be read", found=found)


def _samples(key: str, members: list[TarInfo]) -> list[tuple[str, list[TarInfo]]]:
    """Divide the members of a key by all that comes before their kinds, if each part then has the same kinds.

    So keys with dots are kept apart, and `a.png` with `a.mask.png` stay one sample.
    """
    stems: dict[str, list[TarInfo]] = {}
    for member in members:
        stems.setdefault(str(PurePosixPath(member.name.rpartition(".")[0])), []).append(member)
    kinds = {tuple(sorted(_kind_of(member) for member in of_stem)) for of_stem in stems.values()}
    return list(stems.items()) if len(kinds) == 1 else [(key, members)]


def _kind_of(member: TarInfo) -> str:
    return member.name.rpartition(".")[2].lower()


def _members(archive: tarfile.TarFile, stream: BinaryIO) -> Iterator[tuple[str, TarInfo]]:
    """Yield the files of an archive whose names have a key (up to the first dot, with the folder) and a kind.

    Raises: tarfile.ReadError if it ends too early or is damaged. `tarfile` itself takes a damaged header for the end,
        and also the end of a file whose writer was killed before it wrote the empty blocks that close an archive.
    """
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it remembers all: a gigabyte for a large archive
        path = PurePosixPath(member.name)
        stem, _, kinds = path.name.partition(".")
        if member.isfile() and stem and kinds:
            yield str(path.parent / stem), member
    stream.seek(archive.offset)
    closing = stream.read(tarfile.BLOCKSIZE)
    if len(closing) < tarfile.BLOCKSIZE or any(closing):
        problem = "cut short" if len(closing) < tarfile.BLOCKSIZE else "damaged"
        raise tarfile.ReadError(f"{problem} at byte {archive.offset:,}")


def _read_sample(tar: Path, stream: BinaryIO, members: list[TarInfo], reading: SampleReading) -> dict[str, Any]:
    kinds = [_kind_of(member) for member in members]
    of_kind = dict(zip(kinds, members, strict=True))
    twice = [kind for kind in of_kind if kinds.count(kind) > 1]
    images = [kind for kind in of_kind if f".{kind}" in IMAGE_SUFFIXES]
    images = images or [kind for kind, member in of_kind.items() if _is_image(stream, kind, member)]
    if twice or len(images) > 1:
        raise RowFault("several members of a kind", f"{' and '.join(twice or images)} of one key")
    if not images:
        raise RowFault("no image", f"only {', '.join(of_kind)}")
    member = of_kind[images[0]]
    return {
        "name": f"{tar.name}/{member.name}",
        "path": str(tar.absolute()),
        "offset": member.offset_data,
        **entries.describe_image(stream, member.size, member.name, member.offset_data),
        **reading.read({kind: _read(stream, of_kind[kind]) for kind in TEXT_KINDS if kind in of_kind}),
    }


def _is_image(stream: BinaryIO, kind: str, member: TarInfo) -> bool:
    """Return whether a member of another kind than images have is one, by its first bytes."""
    if kind in TEXT_KINDS:
        return False
    stream.seek(member.offset_data)
    header = stream.read(min(member.size, HEADER_BYTES))
    return find_format(header) is not None or unread_format(member.name, header) is not None


def _read(stream: BinaryIO, member: TarInfo) -> bytes:
    if member.size > MAX_TEXT_BYTES:
        raise RowFault("text too long", f"{member.name} has {member.size:,} bytes")
    stream.seek(member.offset_data)
    return stream.read(member.size)
