"""Result files: numbers with what is needed to measure them again, and the tables that documents quote from them.

Here: results/*.json and marked tables. Not here: commit, machine and versions (`provenance.py`), the metrics
(`naming_tasks.py`, `retrieval.py`, `thumbnails.py`).

A document quotes a table between two lines, and `python -m palindiff.evaluation.results FILE.md` updates it:

    <!-- results/NAME.json: columns=COLUMN,COLUMN:FORMAT, where=KEY=VALUE,KEY=VALUE -->
    <!-- end -->

COLUMN is a key of the rows. FORMAT is a number of decimals with f, e or % (`recall:.1%` shows 0.425 as 42.5%); without
it a number has four significant digits, and no decimals from 1,000 on. `where` is optional: it keeps the rows whose
keys have all the given values, written as the table shows them and without a comma; a row without such a key is left
out. Markers in a fenced block are text. Results are read from one folder, wherever the document is.
"""

import argparse
import difflib
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from palindiff.atomic import atomic_text
from palindiff.evaluation.provenance import RESULTS_FOLDER, Machine, facts_of_this_run

Scalar = StrictStr | StrictBool | StrictInt | StrictFloat | None
Row = dict[str, Scalar]

_MARKER = re.compile(r"<!-- results/([\w-][\w.-]*\.json): columns=(\S.*?)(?:, where=(.+?))? -->")
_MARKER_START, _MARKER_END = "<!-- results/", "<!-- end -->"
_FORMAT = re.compile(r"\.\d[fe%]")
_ABSOLUTE_PATH = re.compile(r"(?:file://|(?<![\w./\\~-]))(?:/(?!/)|[A-Za-z]:[\\/])[^\s'\",=:;]+")


class Results(BaseModel, frozen=True, extra="forbid"):
    """A result file: rows of numbers and where they come from."""

    command: str
    settings: dict[str, JsonValue]
    seed: int
    elapsed_s: float
    commit: str | None  # of the git checkout that holds the package; None outside a checkout
    is_dirty: bool | None  # the checkout has changes outside the results folder
    machine: Machine
    python: str
    versions: dict[str, str | None]  # None: not installed as a package
    rows: list[Row]


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, Scalar]],
    command: str,
    settings: Mapping[str, object],
    seed: int,
    elapsed_s: float,
) -> Results:
    """Write a result file atomically, with commit, machine and versions; absolute paths are cut to their last part.

    Units:  elapsed_s in seconds.
    Raises: ValueError if there are no rows, or a number is not finite; TypeError for a value that is not JSON.
    """
    if not rows:
        raise ValueError(f"No rows for `{path.name}`. Expected one or more. Pass the measured rows.")
    results = Results(
        command=_without_absolute_paths(command),
        settings={name: _as_json(value, f"settings.{name}") for name, value in settings.items()},
        seed=seed,
        elapsed_s=round(elapsed_s, 1),
        python=platform.python_version(),
        **facts_of_this_run(),
        rows=[
            {name: _as_json(value, f"rows.{i}.{name}", is_cell=True) for name, value in row.items()}
            for i, row in enumerate(rows)
        ],
    )
    facts = results.model_dump(exclude={"rows"})
    head = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in results.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(path, f'{head},\n  "rows": [\n{lines}\n  ]\n}}\n')
    return results


def script_command(file: str) -> str:
    """The command that ran a script of a folder such as `benchmarks`, for its result file; it can be run again.

    file: `__file__` of the script.
    """
    path = Path(file)
    return shlex.join(["python", f"{path.parent.name}/{path.name}", *sys.argv[1:]])


def read_results(path: Path) -> Results:
    """Read a file of `write_results`.

    Raises: FileNotFoundError; ValueError if it is not a result file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist. Expected a result file. Run the evaluation that writes it.")
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'text'}: {each['msg']}" for each in error.errors()[:5]]
        raise ValueError(
            f"`{path}` is not a result file ({'; '.join(problems)}). Expected what `write_results` writes. "
            "Run the evaluation again."
        ) from error


def render_table(rows: Sequence[Mapping[str, Scalar]], columns: Sequence[str]) -> str:
    """Render rows as a GitHub table, numbers aligned right; the same rows give the same text everywhere.

    Columns are keys of the rows, optionally with a format after a colon; the default is four significant digits.

    Raises: ValueError for an unknown column or format, or if there are no rows or columns.
    """
    if not rows or not columns:
        raise ValueError(
            f"A table of {len(rows)} rows and {len(columns)} columns. Expected at least one of each. Pass both."
        )
    lines = zip(*(_column_lines(rows, *column.partition(":")[::2]) for column in columns), strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_document(text: str, results_dir: Path) -> str:
    """Render every marked table of a document again from the result files; all else stays as it is.

    Raises: ValueError for a marker that cannot be read or has no end, an unknown column or key, or a `where` that
            no row meets; FileNotFoundError for a missing result file.
    """
    written: list[str] = []
    is_fenced, opened = False, 0  # line of the marker whose old table is being skipped; 0: none
    for number, line in enumerate(text.split("\n"), start=1):
        is_marker = line.lstrip().startswith(_MARKER_START)
        if opened and is_marker:
            break
        if opened and line.strip() != _MARKER_END:
            continue
        opened = 0
        written.append(line)
        is_fenced ^= line.lstrip().startswith("```")
        if is_marker and not is_fenced:
            written += ["", _marked_table(line, number, results_dir), ""]
            opened = number
    if opened:
        raise ValueError(f"The table of line {opened} has no end. Expected a line `{_MARKER_END}` after it. Add it.")
    return "\n".join(written)


def _marked_table(line: str, number: int, results_dir: Path) -> str:
    marker = _MARKER.fullmatch(line)
    if marker is None:
        raise ValueError(
            f"Line {number} is `{line.strip()}`. Expected, from the line's beginning, `<!-- results/NAME.json: "
            "columns=COLUMN,COLUMN -->`, or with `, where=KEY=VALUE` after the columns. Fix the line."
        )
    name, columns, where = marker.groups()
    try:
        rows: list[Row] = read_results(results_dir / name).rows
        for condition in where.split(",") if where else ():
            key, _, wanted = (part.strip() for part in condition.partition("="))
            if rows and not any(key in row for row in rows):
                _value(rows[0], key, "key")
            rows = [row for row in rows if key in row and _cell(row[key]) == wanted]
        if not rows:
            raise ValueError(f"No row of `{name}` has {where}. Expected at least one. Use values of the file.")
        return render_table(rows, [column.strip() for column in columns.split(",")])
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"Line {number}: {error}") from error


def _value(row: Mapping[str, Scalar], name: str, called: str) -> Scalar:
    if name not in row:
        near = difflib.get_close_matches(name, row, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else "Use one of these."
        raise ValueError(f"There is no {called} `{name}` in each row. Expected one of {', '.join(row)}. {hint}")
    return row[name]


def _column_lines(rows: Sequence[Mapping[str, Scalar]], name: str, spec: str) -> list[str]:
    """Return heading, rule and cells of one column, padded to the same width."""
    if spec and not _FORMAT.fullmatch(spec):
        raise ValueError(f"Column `{name}` has the format `{spec}`. Expected one such as .3f. Use f, e or %.")
    values = [_value(row, name, "column") for row in rows]
    cells = [_cell(value, spec) for value in values]
    width = max(3, len(name), *map(len, cells))
    if any(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [name.rjust(width), "-" * (width - 1) + ":", *(cell.rjust(width) for cell in cells)]
    return [name.ljust(width), "-" * width, *(cell.ljust(width) for cell in cells)]


def _cell(value: Scalar, spec: str = "") -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "\\|")
    default = "d" if isinstance(value, int) else ".4g" if abs(value) < 1000 else ".0f"
    return format(value, spec or default)


def _as_json(value: object, place: str, is_cell: bool = False) -> JsonValue:
    """Convert a value to JSON types, without absolute paths; a cell of a row is no list, dict or path."""
    if is_cell and not isinstance(value, str | int | float | None):
        raise TypeError(
            f"`{place}` is a {type(value).__name__}. Expected text, a number, a bool or None. "
            "Pass `float(value)` for a tensor's single number."
        )
    if isinstance(value, Mapping):
        return {str(name): _as_json(each, f"{place}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each, f"{place}.{i}") for i, each in enumerate(value)]
    if isinstance(value, Path):
        return _shortened(str(value)) if value.is_absolute() else str(value)
    if isinstance(value, str):
        return _without_absolute_paths(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{place}` is {value}. Expected a finite number. Pass None where nothing was measured.")
    if value is None or isinstance(value, bool | int | float):
        return float(value) if isinstance(value, float) else value  # `float`: of numpy's own type
    raise TypeError(f"`{place}` is a {type(value).__name__}. Expected JSON. Pass text, numbers, lists or dicts.")


def _without_absolute_paths(text: str) -> str:
    return _ABSOLUTE_PATH.sub(lambda found: _shortened(found.group().removeprefix("file://")), text)


def _shortened(path: str) -> str:
    """Return a path inside the working folder relative to it, and only the last part of any other."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here) if path.startswith(here) else re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Update the marked tables of documents in place."""
    parser = argparse.ArgumentParser(description="Update the tables that documents quote from result files, in place.")
    parser.add_argument("documents", nargs="+", type=Path, metavar="FILE.md")
    parser.add_argument(
        "--results", type=Path, default=Path(RESULTS_FOLDER), help="folder of result files [default: results]"
    )
    options = parser.parse_args(arguments)
    for path in options.documents:
        try:
            text = path.read_text(encoding="utf-8")
            rendered = render_document(text, options.results)
        except (ValueError, FileNotFoundError) as error:
            sys.exit(f"{path}: {error}")
        if rendered != text:
            atomic_text(path, rendered)
        print(f"{path}: {'updated' if rendered != text else 'unchanged'}")


if __name__ == "__main__":
    main()
