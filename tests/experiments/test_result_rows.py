"""result_rows.py: all rows of a result file, and one line on what is left out."""

import shutil

import pytest

from palindiff.data.images import decode_image
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import reconstruction
from palindiff.experiments import emoji_protocol, result_rows, vendor_protocol
from palindiff.experiments.naming_protocol import embed_compositions
from palindiff.experiments.result_rows import cheap_rows, further_rows, left_out_of, reconstruction_rows
from palindiff.training.features.images_in_memory import decode_images
from toys.emoji import vendor_rows, write_emoji_set, write_vendor

LINE = "For a complete set use `palindiff data emoji --icons FOLDER`"


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(emoji_protocol, "NUM_GENERATED", 2)
    monkeypatch.setattr(emoji_protocol, "METRIC_STEPS", 2)
    for module in (result_rows, vendor_protocol):
        monkeypatch.setattr(module, "missing_packages", lambda: "control nearest_efflite0 (needs a package)")


def kinds(rows):
    """What rows measure, without repetition."""
    return list(dict.fromkeys((row.get("direction", row.get("metric")), row["split"]) for row in rows))


def test_naming_is_measured_of_unseen_concepts_and_of_compositions(model, embedded, emoji_dir):
    compositions = [embed_compositions(model.pipeline, emoji_dir, style) for style in ("flat", "outlined")]
    rows = cheap_rows(model, embedded, compositions)
    assert kinds(rows) == [
        ("image_to_text", "unseen"), ("text_to_image", "unseen"), ("image_to_text", "composition")
    ]  # fmt: skip
    assert kinds(cheap_rows(model, embedded, [])) == kinds(rows)[:2]


def test_all_else_is_measured_and_what_the_installation_lacks_is_one_line(model, embedded, vendor_dir):
    reported = []
    rows = further_rows(model, embedded, vendor_dir, reported.append)
    assert kinds(rows) == [
        ("caption_to_generated", "seen"), ("caption_to_generated", "composition"), ("caption_to_generated", "unseen"),
        ("image_to_text", "seen"), ("expected_calibration_error", "unseen"), ("psnr_db", "unseen"),
    ]  # fmt: skip
    assert [line for line in reported if "left out" in line] == [
        f"left out: control nearest_efflite0 (needs a package). {LINE}"
    ]
    assert {"steps": 1234, "seconds": 568, "model": "bundled"}.items() <= rows[-1].items()


def test_a_set_without_a_vendor_is_measured_and_one_line_says_how_to_get_it(model, embedded, emoji_dir):
    reported = []
    rows = further_rows(model, embedded, emoji_dir, reported.append)
    assert not [row for row in rows if "vendor" in row]
    assert reported[0] == f"left out: unseen vendor (`{emoji_dir}` has no split `vendor`). {LINE}"
    assert sum("left out" in line for line in reported) == 1


def test_a_vendor_without_its_field_is_left_out(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "concept_split"} for row in vendor_rows()]
    folder = write_vendor(write_emoji_set(tmp_path / "set"), rows)
    shutil.rmtree(folder / "composition")
    assert left_out_of(folder) == [
        "unseen vendor (rows of the split `vendor` have no `concept_split` or no `label`)",
        f"unseen compositions (`{folder}` has no split `composition`)",
    ]


def test_the_vae_is_measured_on_all_unseen_images_of_each_style(model, emoji_dir):
    rows = reconstruction_rows(model, emoji_dir)
    assert [(row["style"], row["metric"], row["n"]) for row in rows] == [
        ("flat", "psnr_db", 16), ("outlined", "psnr_db", 16)
    ]  # fmt: skip
    images = open_images(DataConfig(path=str(emoji_dir), split="test"))
    of_style = [row for row in images if row.fields["style"] == "flat"]
    measured = [
        reconstruction(model.pipeline.vae, decode_images([row], decode_image(row.source).width))[0]["value"]
        for row in of_style
    ]
    assert rows[0]["value"] == pytest.approx(sum(measured) / len(measured), rel=1e-5)  # float32, one image at a time
