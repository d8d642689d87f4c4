"""`palindiff classify` from the command line, with a toy checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import ImageFile

from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.vocabulary import VOCABULARY_FILE, Vocabulary
from toys.models import toy_images

LABELS = ["red apple", "b", "fire"]


@pytest.fixture(scope="module")
def pipeline(model):
    return PalindiffPipeline.from_pretrained(model)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two images in the current folder, and a folder with a third."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "below").mkdir(parents=True)
    names = ["a.png", "[b].png", "more/below/c.png"]
    for name, image in zip(names, toy_images(size_px=64), strict=True):
        image.save(tmp_path / name)
    (tmp_path / "more" / "notes.txt").write_text("no image")
    return names


@pytest.fixture
def classify(palindiff, model):
    """Run the command with --json -> what was told."""

    def run(*arguments):
        code, out, err = palindiff("classify", *arguments, "--model", model, "--device", "cpu", "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def expected_answers(pipeline, files, labels, templates, top, **walk):
    """The pipeline's own probabilities, sorted by hand."""
    answers = []
    for row in pipeline.classify(files, labels, templates, **walk).tolist():
        ranked = sorted(zip(labels, row, strict=True), key=lambda each: -each[1])[:top]
        answers.append([{"label": label, "probability": pytest.approx(share, abs=1e-5)} for label, share in ranked])
    return answers


def test_without_labels_the_model_s_own_are_chosen_from(palindiff, pipeline, model, files, tmp_path):
    shutil.copytree(model, tmp_path / "own")
    (tmp_path / "own" / VOCABULARY_FILE).unlink(missing_ok=True)
    code, _, err = palindiff("classify", "a.png", "--model", tmp_path / "own")
    assert code == 2
    assert "keeps no classes of its training. Expected labels to choose from." in " ".join(err.split())
    Vocabulary(labels=("red", "b", "fire"), templates=("a {}",)).write(tmp_path / "own")
    for template, templates in (((), ["a {}"]), (("--template", "{}"), ["{}"])):
        code, out, err = palindiff("classify", "a.png", "--model", tmp_path / "own", *template, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["templates"] == templates
        assert [each["labels"] for each in found["images"]] == expected_answers(
            pipeline, ["a.png"], ["red", "b", "fire"], templates, 5
        )


def test_answers_are_the_pipeline_s_best(classify, pipeline, files):
    told = classify("a.png", "[b].png", "more", "--labels", "red apple, b,fire", "--top", 2)
    assert [each["image"] for each in told["images"]] == files
    assert [each["labels"] for each in told["images"]] == expected_answers(pipeline, files, LABELS, ["{}"], 2)
    settings = {"num_inference_steps": 8, "guidance_scale": NAMING_GUIDANCE_SCALE, "seed": 0, "templates": ["{}"]}
    assert told.items() >= settings.items()


def test_templates_steps_guidance_and_seed_reach_the_pipeline(classify, pipeline, files):
    templates = ["a {}", "the {} or {}"]
    walk = {"num_inference_steps": 2, "guidance_scale": 1.5, "seed": 3}
    flags = ("--steps", 2, "--guidance-scale", 1.5, "--seed", 3)
    told = classify(
        "a.png", "--labels", ",".join(LABELS), "--template", templates[0], "--template", templates[1], *flags
    )
    assert [told["images"][0]["labels"]] == expected_answers(pipeline, ["a.png"], LABELS, templates, 5, **walk)
    assert told.items() >= (walk | {"templates": templates}).items()
    shares = {tuple(answers[0].items()) for answers in (
        [{each["label"]: each["probability"] for each in classify(
            "a.png", "--labels", "b,fire", *some)["images"][0]["labels"]}]
        for some in (flags, flags[2:], flags[:2] + flags[4:], flags[:4], (*flags, "--template", "a {}"))
    )}  # fmt: skip
    assert len(shares) == 5  # each flag changes the answer


def test_labels_come_from_a_file_too(classify, files, tmp_path):
    (tmp_path / "labels.txt").write_text("fire\n\nfire, smoke\n")
    told = classify("a.png", "--labels", "b", "--labels-file", tmp_path / "labels.txt", "--steps", 1)
    assert {each["label"] for each in told["images"][0]["labels"]} == {"b", "fire", "fire, smoke"}
    assert sum(each["probability"] for each in told["images"][0]["labels"]) == pytest.approx(1, abs=1e-5)


def test_people_get_a_table(palindiff, model, files):
    code, out, err = palindiff("classify", "[b].png", "--labels", "b,fire", "--model", model, "--steps", 1)
    assert code == 0, err
    row = next(line for line in out.splitlines() if "[b].png" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert sorted(cell.split()[0] for cell in cells[1:]) == ["b", "fire"]
    shares = [float(cell.split()[1].rstrip("%")) for cell in cells[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.11)  # one decimal each


def test_a_dry_run_prints_what_would_be_named(palindiff, files):
    arguments = ("classify", "a.png", "more", "--labels", "b,fire", "--template", "a {}", "--dry-run")
    code, out, _ = palindiff(*arguments)
    assert code == 0
    assert out.startswith("model: emoji\n")
    assert out.endswith("templates:\n  a {}\nlabels:\n  b\n  fire\nimages:\n  a.png\n  more/below/c.png\n")
    assert json.loads(palindiff(*arguments, "--json")[1])["labels"] == ["b", "fire"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.png", "--labels", "b,,c"), "A label is empty."),
        (("a.png", "--labels", "b,c, b"), "The label 'b' is repeated."),
        (("a.png", "--labels", ""), "A label is empty."),
        (("a.png", "--labels-file", "none.txt"), "`none.txt` is not a file."),
        (
            ("a.png", "--labels-file", "b,c"),
            "`b,c` is not a file. Expected a text file with one text on each line. Pass a text itself with --labels.",
        ),
        (("a.png", "--labels", 'b,"c'), "--labels cannot be split (unexpected end of data)."),
        (("a.png", "--labels", '"b" c'), "--labels cannot be split (',' expected after '\"')."),
        (("a.png", "--labels", "b", "--template", "a photo"), "The template 'a photo' has no `{}`. Expected"),
        (("none.png", "--labels", "b"), "`none.png` does not exist. Expected an image file or a folder"),
        (("empty", "--labels", "b"), "The folder `empty` holds no image."),
        (("a.png", "--labels", "b", "--model", "emojy"), "No model `emojy`"),
    ],
)
def test_what_cannot_be_named_is_one_sentence(palindiff, files, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    code, out, err = palindiff("classify", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: {sentence}")
    assert err.count("\n") == 1


def test_labels_in_quotes_hold_commas(palindiff, files):
    labels = 'b,"c, d", "e ""f""",5" g'
    told = json.loads(palindiff("classify", "a.png", "--labels", labels, "--dry-run", "--json")[1])
    assert told["labels"] == ["b", "c, d", 'e "f"', '5" g']


@pytest.fixture
def bad(files, tmp_path):
    """An empty image, one that is text and one cut short; and what is told of each."""
    contents = {"0.png": b"", "1.png": b"text", "2.png": (tmp_path / "a.png").read_bytes()[:200]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    faults = ("is empty (0 bytes)", "is not an image that PIL can read", "cannot be decoded (")
    return [f"  `{name}` {fault}" for name, fault in zip(contents, faults, strict=True)]


def test_all_images_that_cannot_be_read_are_listed_before_the_model_is_loaded(palindiff, bad):
    code, out, err = palindiff(
        "classify", "0.png", "a.png", "1.png", "2.png", "--labels", "b,c", "--model", "not a model"
    )
    first, *listed = err.splitlines()
    assert (code, out) == (2, "")
    assert first.startswith("palindiff: 3 of 4 images cannot be used. Expected whole PNG")
    assert first.endswith("Fix them, or use --on-bad skip.")
    assert [line[: len(told)] for line, told in zip(listed, bad, strict=True)] == bad


def test_images_that_cannot_be_read_are_skipped_when_asked_to(palindiff, classify, model, bad):
    labels = ("--labels", "b,c", "--steps", 1, "--model", model)
    code, out, err = palindiff("classify", "0.png", "a.png", "1.png", *labels, "--on-bad", "skip", "--json")
    assert code == 0
    assert json.loads(out) == classify("a.png", *labels)
    assert err.splitlines()[:3] == ["2 of 3 images cannot be used and were left out:", *bad[:2]]
    code, out, err = palindiff("classify", "0.png", *labels, "--on-bad", "skip")
    assert (code, out) == (2, "")
    assert err.startswith("palindiff: 1 of 1 images cannot be used, and none is left. Expected one or more.")


@pytest.fixture
def decoded(monkeypatch):
    """The names of all files that PIL decodes, one after another."""
    names, load = [], ImageFile.ImageFile.load

    def counted(image):
        if image.tile:  # not decoded yet
            names.append(Path(image.fp.name).name)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return names


def test_every_image_is_decoded_once(classify, files, bad, decoded):
    arguments = ("--labels", "b,c", "--steps", 1)
    classify(*files, *arguments)
    assert decoded == ["a.png", "[b].png", "c.png"]
    decoded.clear()
    classify("0.png", *files, "2.png", *arguments, "--on-bad", "skip")
    assert decoded == ["a.png", "[b].png", "c.png", "2.png"]


def test_images_cut_short_are_found_while_decoding_and_all_listed(palindiff, model, files, bad, decoded, tmp_path):
    (tmp_path / "3.png").write_bytes((tmp_path / "2.png").read_bytes())
    arguments = ("a.png", "2.png", "[b].png", "3.png", "--labels", "b,c", "--steps", 1)
    assert "No model" in palindiff("classify", *arguments, "--model", "not a model")[2]
    assert decoded == []  # headers alone were read
    code, out, err = palindiff("classify", *arguments, "--model", model)
    assert (code, out) == (2, "")
    first, *listed = err.splitlines()
    assert first.startswith("palindiff: 2 of 4 images cannot be used. Expected whole PNG")
    assert [line.split()[0] for line in listed] == ["`2.png`", "`3.png`"]
    assert decoded == ["a.png", "2.png", "[b].png", "3.png"]


def test_images_cut_short_are_skipped_when_asked_to(palindiff, classify, model, files, bad):
    arguments = ("--labels", "b,c", "--steps", 1)
    code, out, err = palindiff(
        "classify", "2.png", "a.png", "2.png", "[b].png", *arguments, "--model", model, "--on-bad", "skip", "--json"
    )
    assert code == 0, err
    assert json.loads(out) == classify("a.png", "[b].png", *arguments)
    assert "2 of 4 images cannot be used and were left out:\n  `2.png` cannot be decoded" in err
    code, out, err = palindiff("classify", "2.png", *arguments, "--model", model, "--on-bad", "skip")
    assert (code, out) == (2, "")
    assert err.startswith("palindiff: 1 of 1 images cannot be used, and none is left.")


def test_images_are_counted_while_they_are_checked_and_named(palindiff, model, files, monkeypatch):
    monkeypatch.setattr("palindiff.cli.inputs.IMAGES_PER_COUNT", 2)
    arguments = ("--labels", "b,c", "--steps", 1, "--model", model)
    code, _, err = palindiff("classify", *files, *arguments)
    assert code == 0
    assert err == (
        "2 of 3 images checked\r3 of 3 images checked\n"
        "2 of 3 images\r3 of 3 images\n"
    )  # fmt: skip


def test_file_names_that_are_no_text_come_out_escaped(palindiff, classify, model, files, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / "a.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    arguments = ("--labels", "b,c", "--steps", 1)
    assert classify(name, *arguments)["images"][0]["image"] == name
    code, out, _ = palindiff("classify", name, *arguments, "--model", model)
    assert code == 0
    assert "caf\\udce9.png" in out
    (tmp_path / name).write_bytes(b"")
    assert "`caf\\udce9.png` is empty" in palindiff("classify", name, *arguments)[2]


def test_a_long_file_name_comes_out_whole(palindiff, model, files, tmp_path, cells):
    name, label = f"{'long-' * 40}.png", "l" * 90
    (tmp_path / "a.png").rename(tmp_path / name)
    code, out, err = palindiff("classify", name, "--labels", f"b,{label}", "--model", model, "--steps", 1)
    assert code == 0, err
    told = cells(out)
    assert told[0] == name
    assert any(column.startswith(label) for column in told)


@pytest.mark.parametrize(
    ("flag", "value"), [("--top", 0), ("--steps", 0), ("--guidance-scale", 0), ("--seed", -1), ("--on-bad", "fix")]
)
def test_values_out_of_range_are_refused(palindiff, files, flag, value):
    code, out, err = palindiff("classify", "a.png", "--labels", "b", flag, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{flag}'" in err
