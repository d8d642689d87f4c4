"""`palindiff evaluate-vae`: each flag reaches the report; a run that is not there is one clear sentence."""

import json

import pytest
from PIL import Image

from toys.models import toy_vae


def write_run_and_data(root):
    toy_vae().save_pretrained(root / "run" / "vae")
    (root / "run" / "log.jsonl").write_text('{"step": 9, "elapsed_s": 61.2}\n')
    for split in ("train", "test"):
        folder = root / "data" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (40, 90, 200)).save(folder / "a.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": [split]}) + "\n")


def test_evaluate_vae_prints_a_table_and_writes_numbers_and_sheet(tmp_path, palindiff):
    write_run_and_data(tmp_path)
    results, sheet = tmp_path / "vae.json", tmp_path / "sheet.png"
    code, out, err = palindiff(
        "evaluate-vae",
        "--model",
        tmp_path / "run",
        "--data",
        tmp_path / "data",
        "--results",
        results,
        "--sheet",
        sheet,
    )
    assert code == 0, err
    assert "psnr_db" in out
    assert [row["split"] for row in json.loads(results.read_text())["rows"]] == ["train", "test"]
    assert Image.open(sheet).width > 50


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            "nowhere",
            "`nowhere` holds no vae and no log.jsonl. Expected `bundled`, or a folder that `palindiff train-vae`",
        ),
        ("run/vae", "`run/vae` holds no vae and no log.jsonl."),
        ("begun", "`begun` holds no vae."),
    ],
)
def test_what_is_no_run_is_one_sentence_and_no_hub_name(tmp_path, palindiff, monkeypatch, model, sentence):
    monkeypatch.chdir(tmp_path)
    write_run_and_data(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "log.jsonl").write_text("")
    for more in ((), ("--dry-run",)):
        code, out, err = palindiff("evaluate-vae", "--model", model, "--data", "data", *more)
        assert (code, out) == (2, "")
        assert err.startswith(f"palindiff: {sentence}")
        assert err.count("\n") == 1


def test_a_dry_run_prints_what_would_be_measured_and_writes_nothing(tmp_path, palindiff, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--data", "set", "--sheet", "sheet.png", "--dry-run")
    assert palindiff("evaluate-vae", *arguments)[:2] == (0, "model: bundled\ndata: set\nsheet: sheet.png\n")
    assert not list(tmp_path.iterdir())
