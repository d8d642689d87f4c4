"""`palindiff classify` from the command line, with a toy checkpoint."""

import json

import pytest

from palindiff.inference.pipeline import PalindiffPipeline
from toys import toy_checkpoint, toy_pictures

LABELS = ["red apple", "b", "fire"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pipeline(model):
    return PalindiffPipeline.from_pretrained(model)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two pictures in the current folder, and a folder with a third."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "below").mkdir(parents=True)
    names = ["a.png", "[b].png", "more/below/c.png"]
    for name, picture in zip(names, toy_pictures(size_px=64), strict=True):
        picture.save(tmp_path / name)
    (tmp_path / "more" / "notes.txt").write_text("no picture")
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


def test_answers_are_the_pipeline_s_best(classify, pipeline, files):
    told = classify("a.png", "[b].png", "more", "--labels", "red apple, b,fire", "--top", 2)
    assert [each["picture"] for each in told["pictures"]] == files
    assert [each["labels"] for each in told["pictures"]] == expected_answers(pipeline, files, LABELS, ["{}"], 2)
    settings = {"num_inference_steps": 8, "guidance_scale": 4.0, "seed": 0, "templates": ["{}"]}
    assert told.items() >= settings.items()


def test_templates_steps_guidance_and_seed_are_the_walk_s(classify, pipeline, files):
    templates = ["a {}", "the {} or {}"]
    walk = {"num_inference_steps": 2, "guidance_scale": 1.5, "seed": 3}
    flags = ("--steps", 2, "--guidance-scale", 1.5, "--seed", 3)
    told = classify(
        "a.png", "--labels", ",".join(LABELS), "--template", templates[0], "--template", templates[1], *flags
    )
    assert [told["pictures"][0]["labels"]] == expected_answers(pipeline, ["a.png"], LABELS, templates, 5, **walk)
    assert told.items() >= (walk | {"templates": templates}).items()
    shares = {tuple(answers[0].items()) for answers in (
        [{each["label"]: each["probability"] for each in classify(
            "a.png", "--labels", "b,fire", *some)["pictures"][0]["labels"]}]
        for some in (flags, flags[2:], flags[:2] + flags[4:], flags[:4], (*flags, "--template", "a {}"))
    )}  # fmt: skip
    assert len(shares) == 5  # each flag changes the answer


def test_labels_come_from_a_file_too(classify, files, tmp_path):
    (tmp_path / "labels.txt").write_text("fire\n\nfire, smoke\n")
    told = classify("a.png", "--labels", "b", "--labels-file", tmp_path / "labels.txt", "--steps", 1)
    assert {each["label"] for each in told["pictures"][0]["labels"]} == {"b", "fire", "fire, smoke"}
    assert sum(each["probability"] for each in told["pictures"][0]["labels"]) == pytest.approx(1, abs=1e-5)


def test_people_get_a_table(palindiff, model, files):
    code, out, err = palindiff("classify", "[b].png", "--labels", "b,fire", "--model", model, "--steps", 1)
    assert code == 0, err
    row = next(line for line in out.splitlines() if "[b].png" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert sorted(cell.split()[0] for cell in cells[1:]) == ["b", "fire"]
    shares = [float(cell.split()[1].rstrip("%")) for cell in cells[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.11)  # one decimal each


def test_a_dry_run_tells_what_would_be_named(palindiff, files):
    arguments = ("classify", "a.png", "more", "--labels", "b,fire", "--template", "a {}", "--dry-run")
    code, out, _ = palindiff(*arguments)
    assert code == 0
    assert out.startswith("model: emoji\n")
    assert out.endswith("templates:\n  a {}\nlabels:\n  b\n  fire\npictures:\n  a.png\n  more/below/c.png\n")
    assert json.loads(palindiff(*arguments, "--json")[1])["labels"] == ["b", "fire"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.png",), "No label was given. Expected one or more, different ones, none of them empty. Give them with"),
        (("a.png", "--labels", "b,,c"), "A label is empty."),
        (("a.png", "--labels", "b,c, b"), "The label 'b' is repeated."),
        (("a.png", "--labels", ""), "A label is empty."),
        (("a.png", "--labels-file", "none.txt"), "`none.txt` is no file."),
        (
            ("a.png", "--labels", "b", "--template", "a photo"),
            "To name a picture, the template 'a photo' has no `{}`.",
        ),
        (("none.png", "--labels", "b"), "`none.png` does not exist. Expected a picture file or a folder"),
        (("empty", "--labels", "b"), "The folder `empty` holds no picture."),
        (("a.png", "--labels", "b", "--model", "emojy"), "No model `emojy`"),
    ],
)
def test_what_cannot_be_named_is_one_sentence(palindiff, files, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    code, out, err = palindiff("classify", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty (0 bytes)"), (b"text", "is not a picture that PIL can read"), (None, "cannot be decoded")],
)
def test_a_damaged_picture_among_good_ones_is_one_sentence(palindiff, model, files, tmp_path, content, sentence):
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:200] if content is None else content)
    code, out, err = palindiff("classify", "a.png", "bad.png", "--labels", "b,c", "--model", model)
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: `bad.png` {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("flag", "value"), [("--top", 0), ("--steps", 0), ("--guidance-scale", 0), ("--seed", -1)])
def test_numbers_out_of_range_are_refused(palindiff, files, flag, value):
    code, out, err = palindiff("classify", "a.png", "--labels", "b", flag, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{flag}'" in err
