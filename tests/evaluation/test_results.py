"""results.py: round trip, provenance, no absolute paths, tables and documents by hand, and what is refused."""

import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from palindiff.evaluation.provenance import describe_machine
from palindiff.evaluation.results import main, read_results, render_document, render_table, write_results

ROWS = [
    {"direction": "image_to_text", "k": 1, "recall": 0.1, "is_ema": True, "note": None},
    {"direction": "image_to_text", "k": 10, "recall": 0.42513, "is_ema": True, "note": "a|b"},
    {"direction": "text_to_image", "k": 10, "recall": 1.0, "is_ema": False, "note": "é"},
]
MARKER = "<!-- results/naming.json: columns=k,recall:.1%, where=direction=image_to_text -->"
TABLE = "|   k | recall |\n| --: | -----: |\n|   1 |  10.0% |\n|  10 |  42.5% |"
END = "<!-- end -->"


def write(path, rows=ROWS, command="palindiff evaluate", settings=None, seed=3, elapsed_s=12.34):
    return write_results(path, rows, command, settings or {}, seed, elapsed_s)


@pytest.fixture
def results_dir(tmp_path):
    write(tmp_path / "results" / "naming.json")
    return tmp_path / "results"


def test_results_come_back_as_written(tmp_path):
    settings = {"ks": (1, 5), "model": {"gamma": 0.01, "ema": None, "fusion": "one_way", "is_big": False}}
    path = tmp_path / "new" / "naming.json"
    written = write(path, settings=settings)
    results = read_results(path)
    assert results == written
    assert results.rows == ROWS
    assert [type(value) for value in results.rows[2].values()] == [str, int, float, bool, str]
    assert results.settings == {"ks": [1, 5], "model": settings["model"]}
    assert (results.command, results.seed, results.elapsed_s) == ("palindiff evaluate", 3, 12.3)
    assert os.listdir(path.parent) == ["naming.json"]  # nothing left beside it


def test_results_are_plain_json_with_a_line_for_each_row(tmp_path):
    write(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text)["rows"] == ROWS
    assert sum('"direction"' in line for line in text.splitlines()) == len(ROWS)


def test_results_tell_machine_and_versions(tmp_path):
    results = write(tmp_path / "a.json")
    assert results.python == platform.python_version()
    assert list(results.versions) == ["palindiff", "torch", "diffusers", "transformers", "accelerate", "numpy"]
    assert results.versions["torch"] == version("torch")
    assert results.machine == describe_machine()
    assert results.machine.cpu
    assert results.machine.cores >= 1
    assert results.machine.memory_gib is None or 0.1 < results.machine.memory_gib < 1e5
    assert (results.machine.accelerator is None) is (not torch.accelerator.is_available())


def test_results_hold_no_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    command = f"palindiff evaluate {here}/runs/one --out=/srv/data/x.json --data 'file:///mnt/set' C:\\models\\sd"
    settings = {"vae": Path("/opt/models/vae"), "recipes": ["a/b.yaml", f"{here}/c.yaml"], "data": Path("shared/set")}
    rows = [{"model": "/srv/models/diffdis", "url": "https://example.org/a/b", "ratio": "1/0.07, and/or"}]
    results = write(tmp_path / "a.json", rows, command, settings)
    assert results.command == "palindiff evaluate runs/one --out=x.json --data 'set' sd"
    assert results.settings == {"vae": "vae", "recipes": ["a/b.yaml", "c.yaml"], "data": "shared/set"}
    assert results.rows == [{"model": "diffdis", "url": "https://example.org/a/b", "ratio": "1/0.07, and/or"}]
    text = (tmp_path / "a.json").read_text()
    assert not [part for part in (here, "/srv", "/mnt", "/opt", "C:") if part in text]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"rows": []}, ValueError, r"No rows for `a.json`"),
        ({"rows": [{"k": 1, "recall": math.nan}]}, ValueError, r"`rows.0.recall` is nan. Expected a finite number"),
        ({"rows": [{"k": torch.tensor(1)}]}, TypeError, r"`rows.0.k` is a Tensor.*Pass `float\(value\)`"),
        ({"rows": [{"k": [1]}]}, TypeError, r"`rows.0.k` is a list"),
        ({"settings": {"a": {"b": {1, 2}}}}, TypeError, r"`settings.a.b` is a set"),
        ({"settings": {"a": [0.0, math.inf]}}, ValueError, r"`settings.a.1` is inf"),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, change, error, sentence):
    with pytest.raises(error, match=sentence):
        write(tmp_path / "a.json", **change)
    assert not os.listdir(tmp_path)


def test_read_refuses_what_is_missing_or_no_result_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.json` does not exist. Expected a result file"):
        read_results(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"rows": [{"k": 1}], "sed": 3}')
    with pytest.raises(ValueError, match=r"a.json` is not a result file \(command: Field required"):
        read_results(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("no json")
    with pytest.raises(ValueError, match=r"is not a result file \(text: Invalid JSON"):
        read_results(tmp_path / "a.json")


def test_table_by_hand():
    assert render_table(ROWS, ["direction", "recall", "is_ema", "note"]) == "\n".join(
        [
            "| direction     | recall | is_ema | note |",
            "| ------------- | -----: | ------ | ---- |",
            "| image_to_text |    0.1 | yes    | –    |",
            "| image_to_text | 0.4251 | yes    | a\\|b |",
            "| text_to_image |      1 | no     | é    |",
        ]
    )


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (0.42513, "", "0.4251"),
        (0.0023, "", "0.0023"),
        (12345.6, "", "12346"),
        (98765432, "", "98765432"),
        (0.42513, ":.3f", "0.425"),
        (0.0023, ":.1e", "2.3e-03"),
        (1, ":.0%", "100%"),
        ("two\nlines", "", "two lines"),
    ],
)
def test_table_formats_a_number(value, spec, text):
    assert render_table([{"v": value}], [f"v{spec}"]).splitlines()[2].strip("| ") == text


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        (ROWS, ["k", "recal"], r"no column `recal` in each row. Expected one of direction, k.*Did you mean `recall`"),
        ([{"k": 1, "n": 2}, {"k": 1}], ["k", "n"], r"no column `n` in each row. Expected one of k\."),
        (ROWS, ["recall:3"], r"Column `recall` has the format `3`. Expected one such as .3f"),
        (ROWS, [], r"3 rows and 0 columns"),
        ([], ["k"], r"0 rows and 1 columns"),
    ],
)
def test_table_refuses(rows, columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        render_table(rows, columns)


def test_document_gets_its_table_and_keeps_the_rest(results_dir):
    document = f"# Naming\n\nBefore.\n\n{MARKER}\nold 99%\n\n{END}\nAfter, with no line break"
    rendered = render_document(document, results_dir)
    assert rendered == f"# Naming\n\nBefore.\n\n{MARKER}\n\n{TABLE}\n\n{END}\nAfter, with no line break"
    assert render_document(rendered, results_dir) == rendered


def test_document_shows_a_changed_result(results_dir):
    rendered = render_document(f"{MARKER}\n{END}\n", results_dir)
    write(results_dir / "naming.json", [row | {"recall": 0.5} for row in ROWS])
    assert render_document(rendered, results_dir) == rendered.replace("10.0%", "50.0%").replace("42.5%", "50.0%")


def test_document_holds_several_tables_and_fenced_markers(results_dir):
    fenced = f"```\n<!-- results/none.json: columns=k -->\n```\n{MARKER}\n{END}\ntext\n"
    whole = "<!-- results/naming.json: columns=note -->"
    rendered = render_document(f"{fenced}{whole}\n{END}\n", results_dir)
    assert rendered.startswith(
        f"```\n<!-- results/none.json: columns=k -->\n```\n{MARKER}\n\n{TABLE}\n\n{END}\ntext\n"
    )
    assert rendered.endswith("| note |\n| ---- |\n| –    |\n| a\\|b |\n| é    |\n\n<!-- end -->\n")


def test_document_without_markers_stays_as_it_is(tmp_path):
    text = "# A\n\n<!-- a comment -->\n| k |\n"
    assert render_document(text, tmp_path) == text


@pytest.mark.parametrize(
    ("where", "ks"), [("k=10", ["10", "10"]), ("direction=text_to_image,is_ema=no", ["10"]), ("recall=0.4251", ["10"])]
)
def test_where_keeps_rows_that_meet_every_condition(results_dir, where, ks):
    marker = f"<!-- results/naming.json: columns=k, where={where} -->"
    table = render_document(f"{marker}\n{END}", results_dir).splitlines()[4:-2]
    assert [line.strip("| ") for line in table] == ks


def test_where_leaves_out_rows_without_the_key(tmp_path):
    rows = [{"metric": "psnr_db", "value": 30.0}, *ROWS]
    write(tmp_path / "mixed.json", rows)
    for where, ks in (("k=10", ["10", "10"]), ("metric=psnr_db", None)):
        marker = f"<!-- results/mixed.json: columns={'k' if ks else 'value'}, where={where} -->"
        table = render_document(f"{marker}\n{END}", tmp_path).splitlines()[4:-2]
        assert [line.strip("| ") for line in table] == (ks or ["30"])
    nothing = f"<!-- results/mixed.json: columns=k, where=metric=psnr_db,k=10 -->\n{END}"
    with pytest.raises(ValueError, match="There is no key `k`"):  # of the rows that are left
        render_document(nothing, tmp_path)


@pytest.mark.parametrize(
    ("document", "error", "sentence"),
    [
        ("<!-- results/naming.json columns=k -->\n" + END, ValueError, r"Line 1 is `<!-- results/naming.json columns"),
        ("<!-- results/../x.json: columns=k -->\n" + END, ValueError, r"Line 1 is"),
        (f" {MARKER}\n{END}", ValueError, r"Expected, from the line's beginning, `<!-- results/NAME.json"),
        (f"text\n{MARKER}\ntext", ValueError, r"table of line 2 has no end. Expected a line `<!-- end -->`"),
        (f"{MARKER}\n{MARKER}\n{END}", ValueError, r"table of line 1 has no end"),
        (MARKER.replace("naming", "other") + f"\n{END}", FileNotFoundError, r"Line 1: .*other.json` does not exist"),
        (MARKER.replace("k,", "q,") + f"\n{END}", ValueError, r"Line 1: There is no column `q` in each row"),
        (MARKER.replace("where=direction", "where=direktion") + f"\n{END}", ValueError, r"no key `direktion`.*mean"),
        (MARKER.replace("=image_to", "=pixel_to") + f"\n{END}", ValueError, r"No row of `naming.json` has direction"),
    ],
)
def test_document_refuses(results_dir, document, error, sentence):
    with pytest.raises(error, match=sentence):
        render_document(document, results_dir)


def test_command_renders_documents_in_place(results_dir, tmp_path, capsys):
    document = tmp_path / "naming.md"
    document.write_text(f"{MARKER}\n{END}\n")
    main([str(document), "--results", str(results_dir)])
    assert document.read_text() == f"{MARKER}\n\n{TABLE}\n\n{END}\n"
    written_ns = document.stat().st_mtime_ns
    main([str(document), "--results", str(results_dir)])
    assert document.stat().st_mtime_ns == written_ns  # what is as it should be is not written again
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["updated", "unchanged"]


def test_command_names_the_document_it_cannot_render(tmp_path):
    document = tmp_path / "naming.md"
    document.write_text(f"{MARKER}\n{END}\n")
    with pytest.raises(SystemExit, match=r"naming.md: Line 1: .*naming.json` does not exist"):
        main([str(document), "--results", str(tmp_path)])
    assert document.read_text() == f"{MARKER}\n{END}\n"


def test_rendering_does_not_wait_for_torch():
    code = "import sys, palindiff.evaluation.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
