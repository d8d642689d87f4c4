"""One sample in the parts that webdataset and img2dataset write: an image with KEY.txt, KEY.json and KEY.cls.

Here: captions, class and fields from the texts of a sample. Not here: finding the parts, in archives (`shards.py`) or
beside images (`sidecars.py`).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from palindiff.atomic import atomic_text
from palindiff.data import entries
from palindiff.data.entries import RowFault

CLASS_NAMES = "classnames.txt"
CLASS_TEMPLATES = "zeroshot_classification_templates.txt"
TEXT_KINDS = ("txt", "json", "cls")
MAX_TEXT_BYTES = 16_000_000  # of one of them
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class SampleReading:
    """How the texts of a sample are read."""

    template: str  # makes a caption of the class where a sample has no caption
    caption_key: str | None = None  # "txt", or a key of KEY.json; None: KEY.txt, else "caption" of KEY.json
    class_names: tuple[str, ...] = ()  # names of the numbers in KEY.cls

    def read(self, data: Mapping[str, bytes]) -> dict[str, Any]:
        """Read the texts of a sample, each by its kind -> captions, label and fields of an entry.

        Raises: RowFault if a text is damaged, or none of them is a caption.
        """
        record = entries.as_record(data["json"]) if "json" in data else {}
        label, name = self._class(entries.as_text(data["cls"])) if "cls" in data else (None, None)
        text = entries.as_text(data["txt"]) if "txt" in data else None
        fields = entries.as_fields(record, (self.caption_key or "caption",))
        return {"captions": self._captions(text, record, name), "label": label, "fields": fields}

    @cached_property
    def repeated_names(self) -> frozenset[str]:
        """Names of more than one class. The label of such a class is its number, so that the classes stay apart."""
        return frozenset(name for name, count in Counter(self.class_names).items() if count > 1)

    def _class(self, text: str) -> tuple[str | None, str | None]:
        """Return label and name of the class in a KEY.cls: its number's name where names are known, else its text."""
        found = text.strip()
        if not _NUMBER.fullmatch(found) or not self.class_names:
            return found or None, found or None
        number = int(found)
        if number >= len(self.class_names):
            raise RowFault("class without a name", f"number {found}; {CLASS_NAMES} has {len(self.class_names)} lines")
        name = self.class_names[number]
        return str(number) if name in self.repeated_names else name, name

    def _captions(self, text: str | None, record: dict[str, Any], class_name: str | None) -> tuple[str, ...]:
        """Return the lines of KEY.txt, else the caption of KEY.json, else the class's name; or only `caption_key`."""
        is_hidden = text is not None and not text.strip() and self.caption_key is None and record.get("caption")
        if text is not None and self.caption_key in (None, "txt") and not is_hidden:
            return entries.as_captions([line for line in text.split("\n") if line.strip()] or text)
        if (caption := record.get(self.caption_key or "caption")) is not None:
            return entries.as_captions(caption)
        if class_name is None or self.caption_key:
            raise RowFault("no caption", entries.other_keys(record))
        if not self.class_names and _NUMBER.fullmatch(class_name):
            raise RowFault("no caption", f"class {class_name} has no name: {CLASS_NAMES} is missing")
        return (entries.class_caption(class_name, self.template),)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Read `classnames.txt` in a folder or its parent; empty if there is none."""
    return _lines(folder, CLASS_NAMES)


def read_class_templates(folder: Path) -> tuple[str, ...]:
    """Read `zeroshot_classification_templates.txt`, in which `{c}` is the class, in a folder or its parent."""
    return _lines(folder, CLASS_TEMPLATES)


def keep_class_names(source: Path, folder: Path) -> None:
    """Copy the class names and templates of a source into the folder of what is computed of it."""
    place = source if source.is_dir() else source.parent
    for name in (CLASS_NAMES, CLASS_TEMPLATES):
        if lines := _lines(place, name):
            atomic_text(folder / name, "\n".join(lines) + "\n")


def _lines(folder: Path, name: str) -> tuple[str, ...]:
    files = [folder / name, folder.parent / name]
    text = next((file.read_text(encoding="utf-8-sig") for file in files if file.is_file()), "")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
