"""What img2dataset wrote beside its archives: how many rows it was given, and why some of them have no image.

Here: reading those reports. Not here: the archives (`shards.py`).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_COUNTS = {"failed_to_download": "failed to download", "failed_to_resize": "failed to resize"}


@dataclass
class Downloads:
    """The reports of a source's archives, added up."""

    num_shards: int = 0
    num_without_report: int = 0  # archives whose download was not finished, or whose reports were moved away
    num_listed: int = 0  # rows that img2dataset was given for the archives with a report
    num_fetched: int = 0  # of them, those that it put into an archive
    failed: Counter[str] = field(default_factory=Counter)  # of them, those that it could not fetch or resize
    errors: Counter[str] = field(default_factory=Counter)  # what was wrong with these, in its own words


def read_downloads(tars: Sequence[Path]) -> Downloads:
    """Add up `NAME_stats.json` of each archive `NAME.tar`, which img2dataset writes when one is finished."""
    found = Downloads(num_shards=len(tars))
    for tar in tars:
        report = _report_of(tar)
        if report is None:
            found.num_without_report += 1
            continue
        statuses, errors = report
        found.num_listed += statuses.total()
        found.num_fetched += statuses["success"]
        failed = {words: statuses[key] for key, words in _COUNTS.items()}
        failed["failed otherwise"] = statuses.total() - statuses["success"] - sum(failed.values())
        found.failed.update({words: number for words, number in failed.items() if number > 0})
        found.errors.update(errors)
    return found


def _report_of(tar: Path) -> tuple[Counter[str], Counter[str]] | None:
    """Rows by status and errors by text; None where the report is missing or no such report."""
    try:
        told = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text(encoding="utf-8"))
        statuses = Counter({"success": int(told["successes"])} | {key: int(told[key]) for key in _COUNTS})
        statuses["other"] = max(0, int(told["count"]) - statuses.total())
        errors = {str(error): int(number) for error, number in told.get("status_dict", {}).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    errors.pop("success", None)
    return statuses, Counter(errors)
