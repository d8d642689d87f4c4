"""`palindiff embed`, and `classify` and `rank` on what it wrote, with a toy checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from palindiff.cli.model_option import find_device, launched_process
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.embeddings import read_all
from palindiff.inference.pipeline import PalindiffPipeline
from toys.models import toy_images


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three images without captions, one of them in a sub-folder."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "b.png", "more/c.png"]
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, image in zip(names, toy_images(), strict=True):
        image.save(tmp_path / "photos" / name)
    return names


@pytest.fixture
def run(palindiff, model):
    def command(verb, *arguments):
        return palindiff(verb, *arguments, "--model", model, "--device", "cpu")

    return command


def test_kept_embeddings_answer_as_the_images_do(run, images, model):
    code, _, err = run("embed", "photos", "--output", "kept")
    assert code == 0, err
    vectors, columns = read_all(Path("kept"))
    expected = PalindiffPipeline.from_pretrained(model).encode_image([f"photos/{name}" for name in images])
    np.testing.assert_allclose(vectors.numpy(), expected.numpy(), atol=1e-5)
    assert columns["image_path"] == images
    for verb, texts in (("rank", ("--caption", "a")), ("classify", ("--labels", "a,b"))):
        answers = [json.loads(run(verb, source, *texts, "--json")[1]) for source in ("kept", "photos")]
        results = [each.get("results") or each["images"] for each in answers]
        for kept, fresh in zip(*results, strict=True):
            assert fresh["image"] == f"photos/{kept['image']}"
            (key,) = kept.keys() - {"image"}
            for one, other in zip(kept[key], fresh[key], strict=True):
                assert one == pytest.approx(other, abs=1e-5)


def test_what_a_clip_embedded_is_ranked_and_classified_by_it(palindiff, images, encoder_folder):
    clip = str(encoder_folder / "clip")
    options = ("--model", clip, "--device", "cpu")
    code, out, err = palindiff("embed", "photos", "--output", "kept", *options)
    assert code == 0, err
    assert f"--model {clip}" in out
    loaded = ClipModel.from_pretrained(clip)
    v = loaded.encode_image([f"photos/{name}" for name in images])
    for source, names in (("kept", images), ("photos", [f"photos/{name}" for name in images])):
        ranked = json.loads(palindiff("rank", source, "--caption", "a", "--caption", "b", *options, "--json")[1])
        assert ranked["results"][0]["image"] == names[0]
        cosines = {each["caption"]: each["cosine"] for each in ranked["results"][0]["captions"]}
        expected = (v[0] @ loaded.encode_text(["a", "b"]).T).tolist()
        assert [cosines["a"], cosines["b"]] == pytest.approx(expected, abs=1e-5)
        told = json.loads(palindiff("classify", source, "--labels", "a,b", *options, "--json")[1])
        shares = {each["label"]: each["probability"] for each in told["images"][0]["labels"]}
        scaled = loaded.logit_scale * (v[0] @ loaded.encode_labels(["a", "b"], ["{}"]).T)
        assert [shares["a"], shares["b"]] == pytest.approx(scaled.softmax(dim=0).tolist(), abs=1e-5)
    assert "steps" not in ranked
    code, _, err = palindiff("rank", "photos", "--caption", "a", "--steps", "4", *options)
    assert (code, "embeds an image in one pass" in err) == (2, True)
    code, _, err = palindiff("classify", "photos", *options)
    assert (code, "keeps no classes of its training" in err) == (2, True)


def test_a_dry_run_writes_nothing(run, images, tmp_path):
    code, out, _ = run("embed", "photos", "--output", "kept", "--dry-run")
    assert code == 0
    assert "images: 3" in out
    assert not (tmp_path / "kept").exists()


def test_other_options_and_other_paths_are_refused(run, images):
    run("embed", "photos", "--output", "kept", "--steps", "2")
    for arguments, message in (
        (("rank", "kept", "--caption", "a"), "--steps"),
        (("rank", "kept", "photos", "--caption", "a"), "Expected it alone"),
        (("embed", "photos", "--output", "kept", "--steps", "3"), "holds other embeddings: options"),
        (("embed", "photos", "--output", "photos"), "holds other files"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert message in err


def test_another_model_s_embeddings_are_refused(run, images, palindiff, tmp_path):
    run("embed", "photos", "--output", "kept")
    index = json.loads((tmp_path / "kept" / "embeddings.json").read_text())
    (tmp_path / "kept" / "embeddings.json").write_text(json.dumps(index | {"model_fingerprint": "another"}))
    code, _, err = run("rank", "kept", "--caption", "a")
    assert code == 2
    assert "whose weights are not those of --model" in err


def test_bad_images_are_refused_or_skipped_and_named(run, images, tmp_path):
    (tmp_path / "photos" / "b.png").write_bytes((tmp_path / "photos" / "b.png").read_bytes()[:60])
    code, _, err = run("embed", "photos", "--output", "kept")
    assert code == 2
    assert "b.png" in err
    code, _, err = run("embed", "photos", "--output", "kept", "--on-bad", "skip")
    assert code == 0
    assert "b.png" in err
    assert read_all(Path("kept"))[1]["image_path"] == ["a.png", "more/c.png"]


def test_each_process_of_a_launch_takes_its_own_gpu(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert (find_device("auto"), launched_process()) == ("cuda", (0, 1))
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert (find_device("auto"), find_device("cpu"), launched_process()) == ("cuda:1", "cpu", (5, 8))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert find_device("auto") == "cpu"
