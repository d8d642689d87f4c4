"""measured.py: rows beside the weights are those of the weights, or none."""

import pytest

from palindiff.experiments.measured import MEASURED_FILE, read_measured, write_measured
from palindiff.pretrained.bundled import bundled_folder
from palindiff.training.loop.run_log import read_log, training_cost

ROWS = [{"model": "bundled", "recall": 0.25, "steps": 500, "seconds": 1200, "vendor": None}]


def test_rows_are_read_as_they_were_written(tmp_path):
    assert write_measured(tmp_path, ROWS) == tmp_path / MEASURED_FILE
    assert read_measured(tmp_path, 500, 1200.4) == ROWS


@pytest.mark.parametrize(("steps", "seconds"), [(501, 1200.0), (500, 1201.0)])
def test_rows_of_other_weights_are_not_read(tmp_path, steps, seconds):
    write_measured(tmp_path, ROWS)
    assert read_measured(tmp_path, steps, seconds) == []


def test_without_rows_there_is_no_file(tmp_path):
    assert read_measured(tmp_path, 500, 1200) == []
    write_measured(tmp_path, ROWS)
    write_measured(tmp_path, [])
    assert not (tmp_path / MEASURED_FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"recall": [1]}]}', '{"rows": [], "more": 1}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / MEASURED_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"measured.json` cannot be read.*Remove the file"):
        read_measured(tmp_path, 500, 1200)


def test_the_bundled_rows_are_of_the_bundled_weights():
    folder = bundled_folder("emoji")
    rows = read_measured(folder, *training_cost(read_log(folder / "log.jsonl")))
    assert bool(rows) is (folder / MEASURED_FILE).exists()
