"""The reports that img2dataset writes beside its archives: how many rows it was given, and why some have no image.

Here: reading those reports. Not here: the archives (`shards.py`).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FAILURES = {"failed_to_download": "failed to download", "failed_to_resize": "failed to resize"}


@dataclass
class Downloads:
    """The sum of the reports of a source's archives."""

    num_shards: int = 0
    num_without_report: int = 0  # archives whose download did not finish, or whose reports were moved away
    num_listed: int = 0  # rows that img2dataset was given for the archives with a report
    num_fetched: int = 0  # of them, those that it put into an archive
    failed: Counter[str] = field(default_factory=Counter)  # of them, those that it could not download or resize
    errors: Counter[str] = field(default_factory=Counter)  # what was wrong with these, in its own words


def read_downloads(tars: Sequence[Path]) -> Downloads:
    """Sum `NAME_stats.json` of each archive `NAME.tar`; img2dataset writes it when the archive is finished."""
    total = Downloads(num_shards=len(tars))
    for tar in tars:
        try:
            report = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text(encoding="utf-8"))
            num_fetched = int(report["successes"])
            failed = Counter({words: int(report[key]) for key, words in _FAILURES.items()})
            num_explained = num_fetched + failed.total()
            num_listed = max(num_explained, int(report["count"]))
            errors = {str(error): int(number) for error, number in report.get("status_dict", {}).items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or not such a report
            total.num_without_report += 1
            continue
        failed["failed otherwise"] = num_listed - num_explained
        errors.pop("success", None)
        total.num_listed += num_listed
        total.num_fetched += num_fetched
        total.failed += failed  # without zeros
        total.errors.update(errors)
    return total
