"""benchmarks/first_start.py: which lines of a training are timed, and how encoders are compared."""

import pytest
import torch

from palindiff.data.sources import DataConfig
from toys.by_path import load_by_path
from toys.run import write_images

first_start = load_by_path("benchmarks/first_start.py")


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose `palindiff train` prints what a real one prints."""

    def write(*lines):
        package = tmp_path / "src" / "palindiff" / "cli"
        package.mkdir(parents=True)
        for folder in (package.parent, package):
            (folder / "__init__.py").write_text("")
        body = "\n".join(f"    print({line!r}, file=sys.stderr, flush=True)" for line in lines)
        text = f"import os, sys, time\n\ndef main():\n    assert os.environ['PALINDIFF_CACHE']\n{body}\n"
        text += "    time.sleep(60)\n" if lines[-1].endswith("1 of 1") else ""
        (package / "main.py").write_text(text + "\n\nmain()\n")
        return tmp_path

    return write


@pytest.mark.parametrize("what", ["images", "pictures"])
def test_a_training_is_timed_until_its_features_are_computed_and_then_stopped(checkout, what):
    folder = checkout(f"encoding {what}: 9 of 9", "encoding captions: 9 of 9", "encoding captions: 1 of 1")
    seconds = first_start.time_once(folder, ["--set", "data.path=nowhere"])
    assert 0 < seconds["images"] <= seconds["captions"] < 60


def test_a_training_that_stops_early_is_an_error(checkout):
    with pytest.raises(RuntimeError, match="computed no features: no such data set"):
        first_start.time_once(checkout("no such data set"), [])


def test_the_encoders_compute_the_same_moments(tmp_path):
    data = DataConfig(path=str(write_images(tmp_path)))
    rows = {row["encoder"]: row for row in first_start.compare_encoders(data, rounds=1, num_images=3)}
    assert list(rows) == ["baseline", "own", "channels_last"]
    assert rows["baseline"]["largest_difference_from_baseline"] == 0
    assert rows["own"]["largest_difference_from_baseline"] < 1e-4
    assert 0 < rows["channels_last"]["largest_difference_from_float64"] < 1e-2
    assert all(row["images_per_s"] > 0 for row in rows.values())


def test_group_norm_loses_digits_in_channels_last_where_an_image_is_flat():
    """Why images are encoded in the usual memory format; if torch mends it, channels_last is the faster choice."""
    x = torch.full((1, 16, 64, 64), 3.0) + 1e-3 * torch.rand(1, 16, 64, 64)
    norm = torch.nn.GroupNorm(8, 16)
    exact = norm.double()(x.double())
    norm.float()
    usual, last = norm(x), norm(x.to(memory_format=torch.channels_last))
    assert (usual - exact).abs().max() < (last - exact).abs().max() / 2
