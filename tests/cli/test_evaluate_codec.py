"""`palindiff evaluate-codec`: each flag reaches the report; a run that is not there is one clear sentence."""

import json

from PIL import Image

from toys import toy_vae


def write_run_and_data(root):
    toy_vae().save_pretrained(root / "run" / "vae")
    (root / "run" / "log.jsonl").write_text('{"step": 9, "elapsed_s": 61.2}\n')
    for split in ("train", "test"):
        folder = root / "data" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (40, 90, 200)).save(folder / "a.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": [split]}) + "\n")


def test_evaluate_codec_prints_a_table_and_writes_numbers_and_sheet(tmp_path, palindiff):
    write_run_and_data(tmp_path)
    results, sheet = tmp_path / "codec.json", tmp_path / "sheet.png"
    code, out, err = palindiff(
        "evaluate-codec",
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


def test_evaluate_codec_tells_of_a_run_that_is_not_there(tmp_path, palindiff):
    write_run_and_data(tmp_path)
    code, _, err = palindiff("evaluate-codec", "--model", tmp_path / "nowhere", "--data", tmp_path / "data")
    assert code == 2
    assert "nowhere" in err
