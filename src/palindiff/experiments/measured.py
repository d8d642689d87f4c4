"""The measured rows that a bundled checkpoint keeps beside its weights, so that the demo page can quote them.

Here: the file. Not here: measuring (`result_rows.py`); `scripts/bundled_card.py` copies the rows of
`results/demo.json` into it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from palindiff.atomic import atomic_text
from palindiff.evaluation.results import Row

MEASURED_FILE = "measured.json"


class Measured(BaseModel, frozen=True, extra="forbid"):
    """Rows of a result file."""

    rows: list[Row]


def write_measured(folder: Path, rows: Sequence[Row]) -> Path:
    """Write rows beside the weights in a folder; without rows, remove those of earlier weights.

    Returns: the file's path.
    """
    path = folder / MEASURED_FILE
    if rows:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        atomic_text(path, f'{{"rows": [\n{lines}\n]}}\n')
    else:
        path.unlink(missing_ok=True)
    return path


def read_measured(folder: Path, steps: int, seconds: float) -> list[Row]:
    """Read the rows of a checkpoint's folder; none if it has none, or if they are of weights of another training.

    Raises: ValueError if the file cannot be read.
    """
    path = folder / MEASURED_FILE
    if not path.is_file():
        return []
    try:
        rows = Measured.model_validate_json(path.read_bytes()).rows
    except ValidationError as error:
        raise ValueError(
            f"`{path}` cannot be read ({error.errors()[0]['msg']}). Expected `rows`, as `scripts/bundled_card.py` "
            "writes them. Remove the file, and run that."
        ) from error
    return [row for row in rows if (row.get("steps"), row.get("seconds")) == (steps, round(seconds))]
