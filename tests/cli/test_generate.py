"""`palindiff generate` from the command line, with a toy checkpoint."""

import json
import os

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from palindiff import __version__
from palindiff.inference.pipeline import PalindiffPipeline

FAST = ("--steps", 2, "--device", "cpu")


@pytest.fixture
def generate(palindiff, model, tmp_path):
    """Run the command with --json -> pixels by file name, what was told."""

    def run(*arguments, folder="out"):
        code, out, err = palindiff(
            "generate", *FAST, *arguments, "--model", model, "--output", tmp_path / folder, "--json"
        )
        assert code == 0, err
        told = json.loads(out)
        return {each["path"].split("/")[-1]: np.asarray(Image.open(each["path"])) for each in told["images"]}, told

    return run


def test_each_image_is_stock_generation_from_its_own_seed(generate, model):
    pixels, told = generate("a red apple", "b", "--num", 2, "--seed", 5, "--guidance-scale", 2.5)
    assert told["images"] == [
        {"path": told["images"][i]["path"], "prompt": prompt, "seed": seed, "cosine": None}
        for i, (prompt, seed) in enumerate([("a red apple", 5), ("a red apple", 6), ("b", 5), ("b", 6)])
    ]
    assert list(pixels) == ["a-red-apple-5.png", "a-red-apple-6.png", "b-5.png", "b-6.png"]
    stock = StableDiffusionPipeline.from_pretrained(model)
    for each, image in zip(told["images"], pixels.values(), strict=True):
        generator = torch.Generator().manual_seed(each["seed"])
        expected = stock(each["prompt"], num_inference_steps=2, guidance_scale=2.5, generator=generator).images[0]
        assert np.array_equal(image, np.asarray(expected))


def test_the_batch_size_changes_no_image_and_steps_guidance_and_seed_do(generate):
    arguments = ("a red apple", "b", "--num", 2)
    one, _ = generate(*arguments, "--batch-size", 1, folder="one")
    three, _ = generate(*arguments, "--batch-size", 3, folder="three")
    assert list(one) == list(three)
    assert all(np.array_equal(one[name], three[name]) for name in one)
    for flag, value in (("--steps", 3), ("--guidance-scale", 1)):
        other, _ = generate("a red apple", flag, value, folder=f"other{flag}")
        assert not np.array_equal(other["a-red-apple-0.png"], one["a-red-apple-0.png"])
    later, _ = generate("a red apple", "--seed", 1, folder="later")
    assert np.array_equal(later["a-red-apple-1.png"], one["a-red-apple-1.png"])


def test_a_file_says_how_it_was_made(generate, model):
    _, told = generate("🍎 red", "--guidance-scale", 2.5, "--seed", 3)
    path = told["images"][0]["path"]
    assert path.endswith("/red-3.png")
    expected = {"prompt": "🍎 red", "seed": "3", "guidance_scale": "2.5", "num_inference_steps": "2"}
    assert dict(Image.open(path).text) == expected | {"model": str(model), "palindiff": __version__}
    settings = {"model": str(model), "num_inference_steps": 2, "guidance_scale": 2.5, "seed": 3}
    assert told.items() >= settings.items()


def test_a_second_run_replaces_nothing_and_people_get_a_table(palindiff, generate, model, tmp_path):
    first, _ = generate("b", "--num", 1)
    code, out, err = palindiff("generate", *FAST, "[b]", "--seed", 0, "--model", model, "--output", tmp_path / "out")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b-0.png", "b-0 (2).png"}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "b-0.png")), first["b-0.png"])
    row = next(line for line in out.splitlines() if "b-0 (2).png" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["[b]", "0", "b-0 (2).png"]


def test_prompts_come_from_a_file_too(generate, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red apple\n\n  b \n", encoding="utf-8")
    _, told = generate("c", "--prompts", tmp_path / "prompts.txt")
    assert [each["prompt"] for each in told["images"]] == ["c", "a red apple", "b"]


def test_a_dry_run_prints_what_would_be_generated_and_writes_nothing(palindiff, tmp_path):
    arguments = ("generate", "b", "[c]", "--num", 3, "--seed", 4, "--output", tmp_path / "out", "--dry-run")
    code, out, _ = palindiff(*arguments)
    assert code == 0
    assert "model: emoji\n" in out
    assert "images_of_each_prompt: 3\n" in out
    assert out.endswith("prompts:\n  b\n  [c]\n")
    told = json.loads(palindiff(*arguments, "--json")[1])
    assert told.items() >= {"dry_run": True, "seed": 4, "num_inference_steps": 30, "guidance_scale": 4.0}.items()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "No prompt was given. Expected a list of non-empty prompts. Use PROMPT or --prompts."),
        (("b", " "), "A prompt is empty."),
        (("--prompts", "none.txt"), "`none.txt` is not a file."),
        (("--prompts", "blank.txt"), "`blank.txt` has no line with text."),
        (("--prompts", "binary.txt"), "`binary.txt` is not UTF-8"),
        (("b", "--output", "binary.txt"), "`binary.txt` is a file. Expected a folder."),
        (
            ("b", "--output", "binary.txt/below", "--model", "not a model"),
            "`binary.txt/below` cannot be written (Not a "
            "directory). Expected a folder that takes new files. Pass another with --output.",
        ),
        (
            ("--prompts", "a red apple"),
            "`a red apple` is not a file. Expected a text file with one text on each line. "
            "Pass a text itself with PROMPT.",
        ),
        (("b", "--model", "emojy"), "No model `emojy`: it is not a folder. Expected"),
        (("b", "--model", "a/b/c"), "No model `a/b/c`: it is not a folder. Expected"),
        (("b", "--model", "."), "`.` has no model_index.json. Expected a checkpoint folder"),
        (("b", "--device", "warp"), "--device is warp. Expected auto, cpu"),
    ],
)
def test_what_cannot_be_generated_is_one_sentence(palindiff, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    code, out, err = palindiff("generate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: {sentence}")
    assert err.count("\n") == 1
    assert not (tmp_path / "generations").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_files_is_refused_before_the_model_is_loaded(palindiff, tmp_path):
    (tmp_path / "kept").mkdir(mode=0o555)
    code, _, err = palindiff("generate", "b", "--output", tmp_path / "kept" / "new", "--model", "not a model")
    assert code == 2
    assert "cannot be written (Permission denied)" in err


@pytest.mark.parametrize("steps", [1001, 2000])
def test_more_steps_than_the_scheduler_has_are_refused_before_anything_is_generated(palindiff, model, tmp_path, steps):
    code, out, err = palindiff("generate", "b", "--steps", steps, "--model", model, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: `num_inference_steps` is {steps}. Expected 1 to 1000")
    assert not (tmp_path / "out").exists()


def test_images_are_counted_and_long_names_come_out_whole(palindiff, model, tmp_path, cells):
    prompt = "p" * 90
    code, out, err = palindiff("generate", *FAST, prompt, "--model", model, "--output", tmp_path / "out")
    assert code == 0
    assert err == "1 of 1 images\n"
    assert cells(out) == [prompt, "0", f"{'p' * 48}-0.png"]


def test_a_hub_name_that_cannot_be_had_is_one_sentence(palindiff, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = palindiff("generate", "b", "--model", "nobody/nothing")
    assert (code, out) == (2, "")
    assert err.startswith(
        "palindiff: No model `nobody/nothing`: it is not a folder, and the Hub did not give it. Expected"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value"), [("--num", 0), ("--batch-size", 0), ("--steps", 0), ("--guidance-scale", 0.5), ("--seed", -1)]
)
def test_numbers_out_of_range_are_refused(palindiff, flag, value):
    code, out, err = palindiff("generate", "b", flag, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{flag}'" in err


def test_the_best_of_several_is_one_of_them(generate, model, palindiff, tmp_path):
    all_four, _ = generate("a red apple", "--num", 4, "--seed", 5)
    best, told = generate("a red apple", "--num", 2, "--best-of", 2, "--seed", 5, folder="best")
    chosen = [each["seed"] for each in told["images"]]
    assert chosen[0] in (5, 6)
    assert chosen[1] in (7, 8)
    pipeline = PalindiffPipeline.from_pretrained(model)
    e = pipeline.encode_text(["a red apple"])
    for (name, image), each in zip(best.items(), told["images"], strict=True):
        assert np.array_equal(image, all_four[name])
        own = [5, 6] if each["seed"] < 7 else [7, 8]
        z = [
            pipeline("a red apple", num_inference_steps=2, guidance_scale=4.0, output_type="latent",
                     generator=torch.Generator().manual_seed(seed)).images
            for seed in own
        ]  # fmt: skip
        cosines = (pipeline.encode_image(torch.cat(z)) @ e.T)[:, 0]
        assert each["seed"] == own[int(cosines.argmax())]
        assert each["cosine"] == pytest.approx(float(cosines.max()), abs=1e-5)
        with Image.open(each["path"]) as saved:
            assert saved.text["best_of"] == "2"
            assert saved.text["cosine"] == f"{each['cosine']:.4f}"
    out = palindiff("generate", "b", "--best-of", 2, *FAST, "--model", model, "--output", tmp_path / "table")[1]
    assert "cosine" in out
