"""vae_report.py: rows and sheet of a VAE run, measured on the folder's own splits."""

import json

import pytest
import torch
from PIL import Image

from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import reconstruction
from palindiff.experiments.vae_report import report_vae
from palindiff.training.features.images_in_memory import decode_images
from toys.models import toy_vae


@pytest.fixture
def data_dir(tmp_path):
    """Two splits of small images, different in number."""
    for split, number in (("train", 3), ("test", 2)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        rows = []
        for i in range(number):
            Image.new("RGB", (8, 8), (40 * i, 90, 200 - 50 * i)).save(folder / f"{i}.png")
            rows.append({"file_name": f"{i}.png", "captions": [f"{split} {i}"]})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_report_measures_both_splits_and_writes_what_is_asked_for(tmp_path, data_dir):
    run = tmp_path / "run"
    toy_vae().save_pretrained(run / "vae")
    (run / "log.jsonl").write_text('{"step": 9, "elapsed_s": 61.2}\n')
    outputs = {"results": tmp_path / "vae.json", "sheet": tmp_path / "sheet.png"}
    rows = report_vae(str(run), data_dir, "palindiff evaluate-vae", **outputs)
    assert [(row["split"], row["n"], row["steps"], row["seconds"]) for row in rows] == [
        ("train", 3, 9, 61), ("test", 2, 9, 61),
    ]  # fmt: skip
    images = decode_images(open_images(DataConfig(path=str(data_dir), split="test")), 8)
    expected = reconstruction(toy_vae().to(torch.float32), images)[0]["value"]
    assert rows[1]["psnr_db"] == pytest.approx(expected, abs=1e-3)  # rounded to three places
    written = json.loads((tmp_path / "vae.json").read_text())
    assert (written["rows"][1]["n"], written["seed"]) == (2, 0)
    assert Image.open(tmp_path / "sheet.png").width > 100
