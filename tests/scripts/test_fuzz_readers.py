"""fuzz_readers.py: every reader meets damaged files, and an error that is not documented comes out."""

import runpy
from functools import partial
from pathlib import Path

import datasets
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz_readers.py"))
SEEDS = SCRIPT["images"]()
SETS = SCRIPT["as_files"](SEEDS[0])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def fuzz(read, examples):
    SCRIPT["fuzz"](read, examples, derandomize=True, database=None)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_damaged_images_give_documented_errors_alone(number):
    fuzz(partial(SCRIPT["read_image"], SEEDS[number]), 40)


@pytest.mark.parametrize("layout", SETS)
def test_damaged_sets_give_documented_errors_alone(layout):
    fuzz(partial(SCRIPT["read_set"], SETS[layout]), 5)


@pytest.mark.parametrize("name", SCRIPT["icon_package"]())
def test_damaged_icon_packages_are_documented_errors(name):
    pytest.importorskip("resvg_py", reason="needs the extra `emoji`")
    fuzz(partial(SCRIPT["read_icons"], name), 20)


def test_examples_are_damaged_and_valid_files_are_read():
    lengths = set()
    fuzz(lambda changes: lengths.add(len(SCRIPT["damaged"](SEEDS[0], changes))), 60)
    assert len(lengths) > 5
    assert SCRIPT["damaged"](b"abcdef", [("remove", 0.5, b"", 2), ("insert", 0, b"x", 1)]) == b"xabcf"
    for files in SETS.values():
        SCRIPT["read_set"](files, [])


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("a library's message"), ValueError("unexpected end of data")]
)
def test_other_errors_come_out(error):
    def read(changes):
        try:
            raise error
        except ValueError as found:
            SCRIPT["check_sentence"](found)

    with pytest.raises((KeyError, AssertionError)):
        fuzz(read, 3)
