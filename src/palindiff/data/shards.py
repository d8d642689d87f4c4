"""Captioned images in tar archives of the webdataset layout, as img2dataset writes them.

Here: which archives a path names, and entries from their members. The images stay in the archives: only an index is
built, and `datasets` keeps it on disk for the next opening. Its own webdataset reader would copy every image, and
stop without a name at the first member that it cannot read.
"""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from palindiff.data.entries import (
    IMAGE_SUFFIXES,
    Entry,
    RowFault,
    as_captions,
    as_fields,
    as_record,
    as_text,
    class_caption,
    content_id,
    file_part,
)
from palindiff.data.index import index_on_disk

if TYPE_CHECKING:
    from datasets import Dataset

CLASS_NAMES = "classnames.txt"
_MAX_TEXT_BYTES = 16_000_000  # of one KEY.txt, KEY.json or KEY.cls

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class ShardReading:
    """How the members of a sample are understood."""

    template: str  # makes a caption of the class where a sample has none
    caption_key: str | None = None  # "txt", or a key of KEY.json; None: KEY.txt, else "caption" of KEY.json
    class_names: tuple[str, ...] = ()  # names of the numbers in KEY.cls


@dataclass
class _Sample:
    """The members of one key, in the order of the archive."""

    key: str
    members: dict[str, tarfile.TarInfo]
    twice: str = ""  # a kind of member that came twice


def is_pattern(path: str) -> bool:
    """Whether a path stands for several: with `*`, `?`, `[...]` or `{...}`."""
    return any(sign in path for sign in "*?[{")


def expand_pattern(pattern: str) -> list[Path]:
    """List what a pattern stands for: `{00000..00331}` and `{a,b}` must all exist, `*` must match something.

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
                "Mend the pattern, or fetch the missing archive."
            )
        found += map(Path, matches)
    return list(dict.fromkeys(found))  # once each, also where two parts of the pattern name it


def _expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; of several braces every combination."""
    if (braces := _BRACES.search(pattern)) is None:
        return [pattern]
    inside = braces[1].split(",")
    if ends := _RANGE.fullmatch(braces[1]):
        width = len(ends[1]) if ends[1].startswith("0") else 0
        inside = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for each in inside for expanded in _expand_braces(before + each + after)]


def read_class_names(tars: Sequence[Path]) -> tuple[str, ...]:
    """Read `classnames.txt` beside the archives or one folder above; empty where there is none."""
    for folder in (tars[0].parent, tars[0].parent.parent):
        if (folder / CLASS_NAMES).is_file():
            lines = (folder / CLASS_NAMES).read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def index_tars(tars: Sequence[Path], reading: ShardReading) -> "Dataset":
    """Index archives, or take the index that an earlier call kept of the same archives and reading."""
    states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    arguments = {"tars": tuple(map(str, tars)), "reading": reading}
    return index_on_disk(scan_tars, arguments, [states, asdict(reading)])


def scan_tars(tars: Sequence[str], reading: ShardReading) -> Iterator[dict[str, Any]]:
    """Yield the rows of an index: one for each sample, and one for each archive that is damaged or empty."""
    for tar in tars:
        for entry in _scan_tar(Path(tar), reading):
            yield entry.as_row()


def _scan_tar(tar: Path, reading: ShardReading) -> Iterator[Entry]:
    num_samples = 0
    try:
        with tar.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for sample in _samples(archive, stream):
                num_samples += 1
                try:
                    yield _entry(tar, stream, sample, reading)
                except RowFault as fault:
                    yield Entry.bad(f"`{sample.key}` in {tar.name}", fault)
    except (tarfile.TarError, OSError) as error:
        yield Entry.bad(f"`{tar.name}`", RowFault("archive cannot be read", f"{error}; expected an uncompressed tar"))
        return
    if not num_samples:
        yield Entry.bad(f"`{tar.name}`", RowFault("archive without samples", "expected KEY.jpg with KEY.txt"))


def _samples(archive: tarfile.TarFile, stream: BinaryIO) -> Iterator[_Sample]:
    """Group neighbouring members by their name up to the first dot."""
    sample: _Sample | None = None
    for member in _members(archive, stream):
        folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
        stem, _, kinds = name.partition(".")
        if not stem or not kinds:
            continue
        key = str(folder / stem)
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key, {})
        kind = kinds.rpartition(".")[2].lower()
        sample.twice = kind if kind in sample.members else sample.twice
        sample.members[kind] = member
    if sample is not None:
        yield sample


def _members(archive: tarfile.TarFile, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive.

    Raises: tarfile.ReadError if it ends too early or is damaged; `tarfile` takes a damaged header for the end, and
        the end of the file too, where a killed writer has not come to the empty blocks that close an archive.
    """
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it remembers all: a gigabyte for a large archive
        if member.isfile():
            yield member
    stream.seek(archive.offset)
    closing = stream.read(tarfile.BLOCKSIZE)
    if len(closing) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut short at byte {archive.offset:,}")
    if any(closing):
        raise tarfile.ReadError(f"damaged at byte {archive.offset:,}")


def _entry(tar: Path, stream: BinaryIO, sample: _Sample, reading: ShardReading) -> Entry:
    kinds = [kind for kind in sample.members if f".{kind}" in IMAGE_SUFFIXES]
    if sample.twice or len(kinds) > 1:
        raise RowFault("several members of a kind", f"{sample.twice or ' and '.join(kinds)} of one key")
    if not kinds:
        raise RowFault("no image", f"only {', '.join(sample.members)}")
    told = {kind: _bytes(stream, sample.members[kind]) for kind in ("txt", "json", "cls") if kind in sample.members}
    record = as_record(told["json"]) if "json" in told else {}
    label = _label(as_text(told["cls"]), reading.class_names) if "cls" in told else None
    text = as_text(told["txt"]) if "txt" in told else None
    taken = reading.caption_key or "caption"
    member = sample.members[kinds[0]]
    if member.size == 0:
        raise RowFault("empty image file", f"`{member.name}` has 0 bytes")
    return Entry(
        place=f"`{sample.key}` in {tar.name}",
        name=f"{tar.name}/{member.name}",
        path=str(tar.absolute()),
        offset=member.offset_data,
        size=member.size,
        content=content_id(file_part(stream, member.offset_data), member.size),
        captions=_captions(text, record, label, reading),
        label=label,
        fields=as_fields(record, (taken,)),
    )


def _bytes(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_TEXT_BYTES:
        raise RowFault("text too long", f"{member.name} has {member.size:,} bytes")
    return file_part(stream, member.offset_data)(0, member.size)


def _label(text: str, class_names: Sequence[str]) -> str | None:
    """A number of KEY.cls as the class's name where names are known; other text is the name itself."""
    label = text.strip()
    if not _NUMBER.fullmatch(label) or not class_names:
        return label or None
    if int(label) >= len(class_names):
        raise RowFault("class without a name", f"number {label}; {CLASS_NAMES} has {len(class_names)} lines")
    return class_names[int(label)]


def _captions(text: str | None, record: dict[str, Any], label: str | None, reading: ShardReading) -> tuple[str, ...]:
    """The lines of KEY.txt, else the caption of KEY.json, else the class's name; or only what `caption_key` names."""
    if text is not None and reading.caption_key in (None, "txt"):
        lines = [line for line in text.split("\n") if line.strip()]
        return as_captions(lines if lines else text)
    if (told := record.get(reading.caption_key or "caption")) is not None:
        return as_captions(told)
    if label is None or reading.caption_key:
        raise RowFault("no caption")
    if not reading.class_names and _NUMBER.fullmatch(label):
        raise RowFault("no caption", f"class {label} has no name: {CLASS_NAMES} is missing")
    return (class_caption(label, reading.template),)
