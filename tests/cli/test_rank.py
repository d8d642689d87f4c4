"""`palindiff rank` from the command line, with a toy checkpoint."""

import json

import pytest

from palindiff.inference.pipeline import PalindiffPipeline
from toys.models import toy_images

CAPTIONS = ["a red apple", "b", "[fire]"]


@pytest.fixture(scope="module")
def pipeline(model):
    return PalindiffPipeline.from_pretrained(model)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An image in the current folder, and a folder with two more."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    names = ["a.png", "more/b.png", "more/c.png"]
    for name, image in zip(names, toy_images(), strict=True):
        image.save(tmp_path / name)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS[1:]))
    return names


@pytest.fixture
def rank(palindiff, model):
    """Run the command with --json, all images and all captions -> what was told."""

    def run(*arguments):
        captions = ("--caption", CAPTIONS[0], "--captions", "captions.txt")
        code, out, err = palindiff(
            "rank", "a.png", "more", *captions, *arguments, "--model", model, "--device", "cpu", "--json"
        )
        assert code == 0, err
        return json.loads(out)

    return run


def best(names, cosines, kind, top):
    ranked = sorted(zip(names, cosines, strict=True), key=lambda each: -each[1])[:top]
    return [{kind: name, "cosine": pytest.approx(cosine, abs=1e-5)} for name, cosine in ranked]


def test_both_directions_are_the_pipeline_s_cosines(rank, pipeline, files):
    cosines = pipeline.rank(files, CAPTIONS)
    told = rank("--top", 2)
    assert told["by"] == "image"
    assert told["results"] == [
        {"image": name, "captions": best(CAPTIONS, row, "caption", 2)}
        for name, row in zip(files, cosines.tolist(), strict=True)
    ]
    told = rank("--by", "caption")
    assert told["results"] == [
        {"caption": caption, "images": best(files, column, "image", 5)}
        for caption, column in zip(CAPTIONS, cosines.T.tolist(), strict=True)
    ]


def test_steps_guidance_and_seed_reach_the_pipeline(rank, pipeline, files):
    walk = {"num_inference_steps": 2, "guidance_scale": 1.5, "seed": 3}
    flags = ("--steps", 2, "--guidance-scale", 1.5, "--seed", 3)
    told = rank(*flags)
    cosines = pipeline.rank(files, CAPTIONS, **walk).tolist()
    assert [each["captions"] for each in told["results"]] == [best(CAPTIONS, row, "caption", 5) for row in cosines]
    assert told.items() >= walk.items()
    found = {json.dumps(rank(*some)["results"]) for some in (flags, flags[2:], flags[:2] + flags[4:], flags[:4])}
    assert len(found) == 4  # each flag changes the answer


@pytest.mark.parametrize(("by", "asked"), [("image", ["a.png", "more/b.png", "more/c.png"]), ("caption", ["[fire]"])])
def test_people_get_a_table(palindiff, model, files, by, asked):
    code, out, err = palindiff(
        "rank", "a.png", "more", "--caption", "[fire]", "--by", by, "--model", model, "--steps", 1
    )
    assert code == 0, err
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows if row[0]] == asked
    assert {row[1] for row in rows} == ({"[fire]"} if by == "image" else set(files))
    cosines = [float(row[2]) for row in rows]
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert by == "image" or cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize("by", ["image", "caption"])
def test_long_names_and_captions_come_out_whole(palindiff, model, files, tmp_path, cells, by):
    name, caption = f"{'long-' * 40}.png", "c" * 90
    (tmp_path / "a.png").rename(tmp_path / name)
    code, out, err = palindiff("rank", name, "--caption", caption, "--by", by, "--model", model, "--steps", 1)
    assert code == 0, err
    assert cells(out)[:2] == ([name, caption] if by == "image" else [caption, name])


def test_bad_images_are_all_listed_or_skipped_and_good_ones_counted(palindiff, model, files, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    arguments = ("rank", "0.png", "more", "1.png", "--caption", "b", "--steps", 1)
    code, out, err = palindiff(*arguments, "--model", "not a model")
    assert (code, out) == (2, "")
    assert err.startswith("palindiff: 2 of 4 images cannot be used. Expected")
    assert err.endswith("\n  `0.png` is empty (0 bytes)\n  `1.png` is empty (0 bytes)\n")
    code, out, err = palindiff(*arguments, "--model", model, "--on-bad", "skip", "--json")
    assert code == 0
    assert [each["image"] for each in json.loads(out)["results"]] == files[1:]
    assert err.startswith("2 of 4 images cannot be used and were left out:\n  `0.png` is")
    assert err.endswith("\n2 of 2 images\n")


def test_a_dry_run_prints_what_would_be_ranked(palindiff, files):
    arguments = ("rank", "more", "--caption", "b", "--by", "caption", "--dry-run")
    code, out, _ = palindiff(*arguments)
    assert code == 0
    assert out.startswith("model: emoji\n")
    assert out.endswith("by: caption\ncaptions:\n  b\nimages:\n  more/b.png\n  more/c.png\n")
    assert json.loads(palindiff(*arguments, "--json")[1])["images"] == ["more/b.png", "more/c.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("a.png",),
            "No caption was given. Expected a list of different, non-empty captions. Use --caption or --captions.",
        ),
        (("a.png", "--caption", ""), "A caption is empty."),
        (("a.png", "--caption", "b", "--captions", "captions.txt"), "The caption 'b' is repeated."),
        (("a.png", "--captions", "more"), "`more` is not a file."),
        (
            ("a.png", "--captions", "a cat,a dog"),
            "`a cat,a dog` is not a file. Expected a text file with one text on each "
            "line. Pass a text itself with --caption.",
        ),
        (("a.png", "--captions", "a cat, " * 99), "`a cat, a cat, "),
        (("more", "none.png", "--caption", "b"), "`none.png` does not exist."),
        (("empty", "--caption", "b"), "The folder `empty` holds no image."),
        (("a.png", "--caption", "b", "--model", "emojy"), "No model `emojy`"),
    ],
)
def test_what_cannot_be_ranked_is_one_sentence(palindiff, files, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    code, out, err = palindiff("rank", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value"), [("--by", "folder"), ("--top", 0), ("--steps", 0), ("--guidance-scale", 0), ("--seed", -1)]
)
def test_values_out_of_range_are_refused(palindiff, files, flag, value):
    code, out, err = palindiff("rank", "a.png", "--caption", "b", flag, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{flag}'" in err
