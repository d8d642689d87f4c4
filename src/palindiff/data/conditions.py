"""Parts of a set, chosen by the columns of its rows, `style=flat`, `label!=flag*`, by hash, or evenly."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

import torch
from pydantic import AfterValidator

from palindiff.data.rows import ImageSet
from palindiff.seeds import hash_63_bits


@dataclass(frozen=True)
class Condition:
    """A row's column, or `label`, `image_path` or first `caption`, matches a pattern of `*` and `?`, or does not."""

    key: str
    pattern: str
    is_wanted: bool = True

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `KEY=PATTERN` or `KEY!=PATTERN`.

        Raises: ValueError.
        """
        key, equals, pattern = text.partition("=")
        if not equals or not key.strip("! "):
            raise ValueError(f"The condition `{text}` has no key. Expected KEY=PATTERN or KEY!=PATTERN. Fix it.")
        return cls(key.removesuffix("!").strip(), pattern.strip(), not key.endswith("!"))

    def __str__(self) -> str:
        return f"{self.key}{'=' if self.is_wanted else '!='}{self.pattern}"


def _checked(where: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(Condition.parse(each)) for each in where)


Where = Annotated[tuple[str, ...], AfterValidator(_checked)]
"""A recipe's conditions, as text"""


def select_where(rows: ImageSet, where: Sequence[str]) -> ImageSet:
    """Keep the rows that meet all conditions; a row without the column counts as empty text.

    Raises: ValueError as `Condition.parse`, if no row has a column of that name, or if none meets the conditions.
    """
    conditions = [Condition.parse(each) for each in where]
    if not conditions:
        return rows
    columns = list(rows.columns())
    known = {key for each in columns for key in each}
    if unknown := [each.key for each in conditions if each.key not in known]:
        raise ValueError(
            f"No row of `{rows.source}` has a column `{unknown[0]}`. Expected one of {', '.join(sorted(known))}. "
            "Use one of these."
        )
    chosen = [
        row
        for row, each in enumerate(columns)
        if all(fnmatchcase(each.get(c.key, ""), c.pattern) == c.is_wanted for c in conditions)
    ]
    if not chosen:
        raise ValueError(
            f"No row of `{rows.source}` meets {' and '.join(map(str, conditions))}. Expected at least one. Use other "
            "patterns."
        )
    return rows.select(chosen)


def select_by_hash(rows: ImageSet, number: int) -> ImageSet:
    """Keep `number` rows in their order, chosen by hash of the image's path; all rows if there are no more.

    A smaller number keeps a part of what a larger one does.
    """
    places = [hash_63_bits(f"chosen {each['image_path']}") for each in rows.columns()]
    if number >= len(places):
        return rows
    return rows.select(sorted(sorted(range(len(places)), key=places.__getitem__)[:number]))


def evenly_spread(total: int, number: int) -> list[int]:
    """Shapes: -> `number` of the indices 0 to total - 1, in order; all if there are no more."""
    return [int(i) for i in torch.linspace(0, total - 1, min(number, total)).round()]
