"""`palindiff adapt`: from a catalogue and two stock folders to two stock folders and a report, and bad input."""

import contextlib
import html
import importlib.util
import json
import re
import shlex
import shutil

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel

from palindiff.experiments import adaptation
from palindiff.experiments.adaptation_preset import Device, Trial, Wishes, choose_preset
from palindiff.inference.clip_model import ClipModel
from palindiff.training.cost.estimate import Hardware, count_memory
from palindiff.training.cost.weight_free import fake_unidiff
from palindiff.training.loop.run_log import RunLog
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.train_unidiff import UniDiffTrainer
from toys.page import assert_self_contained
from toys.recipe import COLOURS, write_split
from toys.text_encoders import write_clip

QUICK = ("--set", "loop.num_steps=4", "--set", "loop.evaluate_every=2", "--set", "loop.save_every=2",
         "--set", "loop.batch_size=4")  # fmt: skip
GIB = 2**30


def rows(number, start=0):
    return [
        {"file_name": f"{i}.png", "caption": f"a {COLOURS[i % 4]} {'abcdefghij'[i % 10]}", "label": "ab"[i % 2]}
        for i in range(start, start + number)
    ]


@pytest.fixture
def catalogue(tmp_path):
    """Twenty captioned images."""
    return write_split(tmp_path / "catalogue" / "train", rows(20)).parent


@pytest.fixture
def adapt(palindiff, shallow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALINDIFF_CACHE", str(tmp_path / "cache"))

    def run(data, *given, clip=shallow / "clip_1"):
        models = ("--clip", clip, "--stable-diffusion", shallow / "sd1")
        return palindiff("adapt", *models, "--data", data, "--output", tmp_path / "adapted", *given)

    return run


def test_a_catalogue_becomes_two_stock_folders_and_a_report(palindiff, adapt, catalogue, tmp_path):
    write_split(tmp_path / "others" / "test", rows(6), drawn_from=30)
    code, out, err = adapt(catalogue, *QUICK, "--retain", tmp_path / "others", "--set", "trained=lora")
    assert code == 0, err
    adapted = tmp_path / "adapted"
    assert CLIPModel.from_pretrained(adapted / "clip")
    assert StableDiffusionPipeline.from_pretrained(adapted / "stable_diffusion", safety_checker=None)
    assert (adapted / "stable_diffusion_lora" / "pytorch_lora_weights.safetensors").is_file()
    page = (adapted / "report.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    for text in ("recall@1", "KD-EffLite0", "effective rank", "zero-shot accuracy on --retain", "Trained: lora"):
        assert text in page
    assert "not measured" not in page
    (of_retained,) = [row for row in page.split("<tr>") if "zero-shot accuracy on --retain" in row]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", of_retained)[-2] == "50.0 %"  # chance of two classes
    assert page.count('alt="after"') == page.count('alt="before"') >= 2
    assert "written: " in out
    embed, rank, generate = html.unescape(page).partition("<pre>")[2].partition("</pre>")[0].strip().splitlines()
    assert f"next: {embed}" in out
    for command in (embed, rank):
        code, _, err = palindiff(*shlex.split(command)[1:])
        assert code == 0, err
    assert shlex.split(generate)[:2] == ["python", "-c"]
    compile(shlex.split(generate)[2], "generate", "exec")
    code, out, err = adapt(catalogue, *QUICK, "--retain", tmp_path / "others", "--set", "trained=lora")
    assert code == 0, err  # a finished run is reported again
    longer = [each.replace("num_steps=4", "num_steps=6") for each in QUICK]
    code, out, err = adapt(catalogue, *longer, "--retain", tmp_path / "others", "--set", "trained=lora")
    assert code == 0, err  # and prolonged
    assert len(list((adapted / "run").glob("generated-before-*"))) == 1


def test_images_are_measured_in_the_squares_that_training_sees(adapt, catalogue, monkeypatch):
    fits = []
    encode = ClipModel.encode_image
    monkeypatch.setattr(
        ClipModel, "encode_image", lambda *given, **named: fits.append(named.get("fit")) or encode(*given, **named)
    )
    code, _, err = adapt(catalogue, *QUICK, "--set", "data.fit=pad", "--set", "loop.evaluate_every=0")
    assert code == 0, err
    assert set(fits) == {"pad"}
    assert len(fits) == 2


def test_without_other_images_the_report_says_what_it_did_not_measure(adapt, catalogue, tmp_path):
    code, _, err = adapt(catalogue, *QUICK)
    assert code == 0, err
    page = (tmp_path / "adapted" / "report.html").read_text(encoding="utf-8")
    assert "Accuracy kept on other images: not measured. Pass a data set with classes as --retain." in page


def test_a_split_for_validation_is_used_as_it_is(adapt, catalogue):
    write_split(catalogue / "validation", rows(5, start=40), drawn_from=40)
    code, out, err = adapt(catalogue, "--dry-run")
    assert code == 0, err
    assert "validation_fraction: 0" in out
    assert "Trained: lora, as 20 images are fewer than 1,000." in out


def same_caption(folder):
    metadata = folder / "train" / "metadata.jsonl"
    lines = [json.loads(line) | {"caption": "a thing"} for line in metadata.read_text().splitlines()]
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))


def two_images(folder):
    shutil.rmtree(folder / "train")
    write_split(folder / "train", rows(2))


def equal_validation(folder):
    write_split(folder / "validation", [row | {"caption": "a thing"} for row in rows(4, start=40)], drawn_from=40)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (two_images, "1 images to train on. Expected 16 or more."),
        (same_caption, "have equal captions, directly or through others. Expected captions that differ"),
        (equal_validation, "4 images held out of"),
    ],
)
def test_a_catalogue_that_teaches_nothing_is_refused_in_a_sentence(adapt, catalogue, change, sentence, tmp_path):
    change(catalogue)
    code, _, err = adapt(catalogue)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not (tmp_path / "adapted").exists()


def test_what_is_asked_for_has_its_own_rate_and_reason(adapt, catalogue):
    code, out, err = adapt(catalogue, "--dry-run", "--set", "trained=all")
    assert code == 0, err
    assert "learning_rate: 1.0e-05" in out
    assert "Trained: all, which was asked for." in out


def clip_weights(folder):
    return load_file(folder / "clip" / "model.safetensors")


def test_an_interrupted_adaptation_goes_on_and_ends_in_the_same_weights(adapt, catalogue, tmp_path, monkeypatch):
    code, _, err = adapt(catalogue, *QUICK)
    assert code == 0, err
    (tmp_path / "adapted").rename(tmp_path / "whole")
    steps, log = [], RunLog.step

    def interrupted(self, step, numbers):
        if step == 3 and not steps:
            steps.append(step)
            raise KeyboardInterrupt
        log(self, step, numbers)

    monkeypatch.setattr(RunLog, "step", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        adapt(catalogue, *QUICK)
    assert steps == [3]
    assert sorted(path.name for path in (tmp_path / "adapted").iterdir()) == ["preset.json", "run"]
    code, _, err = adapt(catalogue, *QUICK)
    assert code == 0, err
    whole, again = clip_weights(tmp_path / "whole"), clip_weights(tmp_path / "adapted")
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


def test_models_that_training_makes_worse_stay_as_they_were(adapt, catalogue, shallow, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(UniDiffTrainer, "validation_losses", lambda self: {"validation_generation": next(losses)})
    code, _, err = adapt(catalogue, *QUICK, "--set", "evaluation.keep_best=generation", "--set", "trained=all")
    assert code == 0, err
    assert json.loads((tmp_path / "adapted" / "run" / "best.json").read_text())["step"] == 0
    assert "At no evaluation were the trained models better" in (tmp_path / "adapted" / "report.html").read_text()
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / name) for folder in (shallow / "sd1",
                                                             tmp_path / "adapted" / "stable_diffusion"))  # fmt: skip
    assert all(torch.equal(after[key], weight.float()) for key, weight in before.items())


def no_peft(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("given", "change", "sentence"),
    [
        (("--retain", "nowhere"), None, "nowhere"),
        (("--set", "trained=lora", "--set", 'lora.unet_layers=["to_z"]'), None, "the layer `to_z` of the U-Net"),
        (
            ("--set", "trained=lora", "--set", 'lora.clip_layers=["to_z"]'),
            None,
            "the layer `to_z` of the image encoder",
        ),
        (("--set", "trained=lora"), no_peft, "the package peft is not installed. Expected the extra `lora`"),
    ],
)
def test_what_would_fail_later_is_found_before_anything_is_written(
    adapt, catalogue, given, change, sentence, dry_run, tmp_path, monkeypatch
):
    if change is not None:
        change(monkeypatch)
    code, _, err = adapt(catalogue, *given, *dry_run)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not (tmp_path / "adapted").exists()


def test_a_clip_whose_text_encoder_does_not_fit_the_unet_is_refused(adapt, catalogue, tmp_path):
    code, _, err = adapt(catalogue, clip=write_clip(tmp_path / "narrow", hidden_size=16))
    assert code == 2
    assert "Expected one width. Use the CLIP that the Stable Diffusion was made with" in err
    assert not (tmp_path / "adapted").exists()


def test_a_stable_diffusion_2_is_refused(palindiff, stable_diffusion, catalogue, tmp_path):
    """Its U-Net takes features of the last layer but one of its CLIP, and a CLIP gives those of the last."""
    models = ("--clip", stable_diffusion / "clip_2", "--stable-diffusion", stable_diffusion / "sd2")
    code, _, err = palindiff("adapt", *models, "--data", catalogue, "--output", tmp_path / "adapted")
    assert code == 2
    assert "Expected one number: the U-Net was trained with the features of its own last layer." in err
    assert not (tmp_path / "adapted").exists()


def test_a_single_file_is_refused_with_what_makes_a_folder_of_it(palindiff, shallow, catalogue, tmp_path):
    file = tmp_path / "sd.safetensors"
    file.touch()
    models = ("--clip", shallow / "clip_1", "--stable-diffusion", file)
    code, _, err = palindiff("adapt", *models, "--data", catalogue, "--output", tmp_path / "adapted")
    assert code == 2
    assert "is a single file. Expected a folder in diffusers' layout, or a Hub name." in err


def test_one_process_of_several_is_refused(adapt, catalogue, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = adapt(catalogue)
    assert code == 2
    assert "`palindiff adapt` was launched as 2 processes (WORLD_SIZE). Expected one" in err


def test_a_damaged_image_is_found_at_once_or_left_out_and_counted(adapt, catalogue, tmp_path):
    image = catalogue / "train" / "7.png"
    image.write_bytes(image.read_bytes()[:60])
    code, _, err = adapt(catalogue, "--dry-run")
    assert code == 2
    assert "7.png" in err
    assert not (tmp_path / "adapted").exists()
    code, out, err = adapt(catalogue, *QUICK, "--set", "data.on_bad=skip")
    assert code == 0, err
    assert "1 of 20 rows of" in out
    page = (tmp_path / "adapted" / "report.html").read_text(encoding="utf-8")
    assert "1 of 20 rows of" in page
    assert " --on-bad skip --output embeddings" in page


def test_few_different_captions_are_reported_beside_what_chance_reaches(adapt, catalogue, tmp_path):
    captions = [{"caption": f"a {COLOURS[i % 3]} thing"} for i in range(6)]
    write_split(catalogue / "validation", [row | captions[i] for i, row in enumerate(rows(6, start=40))], 40)
    code, out, err = adapt(catalogue, *QUICK)
    assert code == 0, err
    assert "The 6 held-out images have 3 different captions, so recall among them says little." in out
    page = (tmp_path / "adapted" / "report.html").read_text(encoding="utf-8")
    assert "The 6 held-out images have 3 different captions" in page
    line = page.partition("image to text: recall@1")[2].partition("</tr>")[0]
    assert '<td class="number">33.3 %</td>\n<td>higher</td>' in line  # one caption of three
    assert "--split validation" in page


def test_paths_may_hold_any_character(adapt, catalogue):
    moved = catalogue.rename(catalogue.with_name("🛍 Größen, neu"))
    code, out, err = adapt(moved, "--dry-run")
    assert code == 0, err
    assert yaml.safe_load(out.partition("\nTrained: ")[0])["data"]["path"] == str(moved)


def test_images_of_retain_need_classes(adapt, catalogue, tmp_path):
    bare = [{name: row[name] for name in ("file_name", "caption")} for row in rows(6)]
    write_split(tmp_path / "others" / "test", bare, drawn_from=30)
    code, _, err = adapt(catalogue, "--retain", tmp_path / "others")
    assert code == 2
    assert "label" in err
    assert not (tmp_path / "adapted").exists()


def settings(preset):
    return dict(each.split("=") for each in preset.settings)


HELD = {"all": 26 * GIB, "attention": 15 * GIB, "lora": 6 * GIB}  # close to Stable Diffusion 1.x with its CLIP
GRADIENTS = {"all": 5 * GIB, "attention": 2 * GIB, "lora": 0}


def count(trial):
    """A model of what a step takes: as many bytes for each row, six times fewer with gradient checkpointing."""
    rows = trial.rows * GIB * (0.25 if trial.checkpoints else 1.5)
    return round(HELD[trial.trained] + rows + (GRADIENTS[trial.trained] if trial.is_chunk else 0))


def chosen(num_images, gib, share=0.85, **wishes):
    return choose_preset(num_images, Device(round(gib * GIB), share), count, Wishes(**wishes))


@pytest.mark.parametrize("num_images", [16, 100, 500, 5_000, 100_000])
def test_training_never_stops_within_its_warm_up(num_images):
    found = settings(chosen(num_images, 24))
    every, warm_up = int(found["loop.evaluate_every"]), int(found["optimizer.warmup_steps"])
    assert every >= 10
    assert load_recipe(UniDiffRecipe, "adapt").evaluation.patience * every > warm_up > 0
    assert int(found["loop.num_steps"]) > 4 * every


@pytest.mark.parametrize(
    ("num_images", "gib", "expected"),
    [
        (5_000, 200, ("all", "0", "false")),
        (5_000, 80, ("all", "0", "true")),
        (5_000, 45, ("all", "29", "true")),  # 38.25 GiB to use: 26 and 5 held, a quarter for each row
        (5_000, 24, ("attention", "13", "true")),
        (5_000, 12, ("lora", "16", "true")),
        (5_000, 7.8, ("lora", "2", "true")),  # 6.63 GiB to use
        (500, 80, ("lora", "0", "true")),
        (500, 200, ("lora", "0", "false")),
    ],
)
def test_what_is_trained_and_the_rows_at_once_follow_the_images_and_the_memory(num_images, gib, expected):
    preset = chosen(num_images, gib)
    found = settings(preset)
    names = ("trained", "loop.grad_cache_size", "machine.gradient_checkpointing")
    assert tuple(found[name] for name in names) == expected
    assert found["loop.batch_size"] == "64"
    assert "may run out" not in preset.reasons[2]


def test_the_rows_at_once_take_what_the_reason_says_and_no_more_than_there_is():
    for gib in range(8, 100, 3):
        preset = chosen(5_000, gib)
        found = settings(preset)
        rows, checkpoints = int(found["loop.grad_cache_size"]), found["machine.gradient_checkpointing"] == "true"
        taken = count(Trial(found["trained"], rows or 64, checkpoints, is_chunk=rows > 0))
        assert taken <= 0.85 * gib * GIB
        assert f"A step takes about {taken / GIB:,.1f} of {gib:.1f} GiB" in preset.reasons[2]
        assert not rows or count(Trial(found["trained"], rows + 1, checkpoints, is_chunk=True)) > 0.85 * gib * GIB


def test_what_does_not_fit_is_tried_with_a_warning():
    preset = chosen(5_000, 6)
    assert {"trained=lora", "loop.grad_cache_size=1"} < set(preset.settings)
    assert preset.reasons[0] == "Trained: lora, as it takes the least."
    assert preset.reasons[2] == (
        "A step takes about 6.2 of 6.0 GiB, as counted beforehand: training may run out of memory."
    )
    assert chosen(5_000, 6, trained="all").reasons[0] == "Trained: all, which was asked for."


@pytest.mark.parametrize(
    ("gib", "wishes", "expected", "may_run_out"),
    [
        (24, {"checkpoints": False, "trained": "lora"}, ("9", "false"), False),
        (24, {"grad_cache_size": 8, "trained": "lora"}, ("8", "true"), False),
        (24, {"grad_cache_size": 0, "trained": "lora"}, ("0", "true"), True),
        (24, {"grad_cache_size": 64, "trained": "attention"}, ("0", "true"), True),
        (45, {"batch_size": 8}, ("0", "false"), False),
    ],
)
def test_what_the_user_sets_is_what_is_counted(gib, wishes, expected, may_run_out):
    preset = chosen(5_000, gib, **wishes)
    found = settings(preset)
    assert (found["loop.grad_cache_size"], found["machine.gradient_checkpointing"]) == expected
    assert ("may run out" in preset.reasons[2]) == may_run_out


def test_with_accumulation_the_micro_batch_is_in_memory_and_the_whole_batch_makes_a_step():
    whole, parts = chosen(5_000, 80), chosen(5_000, 80, batch_size=64, accumulation=4)
    assert settings(whole)["loop.num_steps"] == settings(parts)["loop.num_steps"] == "3125"
    assert "Batches of 64 images, each 16 of which are each other's negatives." in parts.reasons
    assert "A step takes about 50.0 of 80.0 GiB, as counted beforehand." in parts.reasons  # 26 and 16 times 1.5


def test_steps_that_the_user_sets_are_those_of_the_reasons():
    preset = chosen(5_000, 80, num_steps=157, evaluate_every=20)
    assert preset.reasons[-1] == "At most 157 steps, 2 times over the images; recall is measured every 20 steps."
    assert "At most 12 steps, 0.15 times over" in chosen(5_000, 80, num_steps=12).reasons[-1]
    assert {"loop.num_steps=157", "loop.evaluate_every=20", "loop.save_every=20"} < set(preset.settings)
    assert (
        chosen(5_000, 80, evaluate_every=0)
        .reasons[-1]
        .endswith("40 times over the images; recall is measured at the end.")
    )


def test_a_micro_batch_of_the_default_batch_is_whole():
    assert settings(chosen(5_000, 80, accumulation=3))["loop.batch_size"] == "63"
    assert settings(chosen(50, 80, accumulation=4))["loop.batch_size"] == "48"


def test_a_gpu_that_computes_in_bf16_trains_in_it():
    assert settings(chosen(5_000, 12))["machine.precision"] == "fp32"
    preset = choose_preset(5_000, Device(12 * GIB, 0.85, computes_bf16=True), count)
    assert settings(preset)["machine.precision"] == "bf16"


@pytest.mark.slow
def test_the_memory_is_counted_on_the_user_s_models(adapt, catalogue, monkeypatch):
    """Toy models with too little memory for all rows at once: what is chosen fits, and two rows more do not."""
    monkeypatch.setattr(adaptation, "device", lambda: Device(2_100_000, 1.0))
    asked = ("--set", "trained=all", "--set", "loop.batch_size=32", "--set", "loop.accumulation=2")
    code, out, err = adapt(catalogue, "--dry-run", *asked)
    assert code == 0, err
    assert "may run out" not in out
    recipe = UniDiffRecipe.model_validate(
        yaml.safe_load("\n".join(each for each in out.splitlines() if each[-1:] != "."))
    )
    rows = recipe.loop.grad_cache_size
    assert f"the activations of {rows} in memory at once" in out

    def taken(rows):
        loop = recipe.loop.model_copy(update={"grad_cache_size": rows})
        changed = recipe.model_copy(update={"loop": loop})
        with fake_unidiff(changed) as run:
            return count_memory(run, changed, Hardware(device="cpu")).peak

    assert rows >= 4
    assert taken(rows) <= 1.05 * 2_100_000  # of the batch and of embeddings, which are small, all rows are there
    assert taken(rows + 2) > 2_100_000


def test_a_run_keeps_what_was_chosen_when_it_began(adapt, catalogue, tmp_path, monkeypatch):
    asked = ("--set", "evaluation.patience=0", "--set", "loop.num_steps=2", "--set", "loop.evaluate_every=0",
             "--set", "loop.batch_size=4")  # fmt: skip
    code, first, err = adapt(catalogue, *asked)
    assert code == 0, err
    assert "counting the memory of a step" in first
    monkeypatch.setattr(adaptation, "device", lambda: Device(1, 1.0, computes_bf16=True))
    code, again, err = adapt(catalogue, *asked)
    assert code == 0, err
    assert "counting" not in again
    write_split(catalogue / "train", rows(21))
    code, _, err = adapt(catalogue, *asked)
    assert code == 2
    assert "has other images or captions than when the run in" in err
    (tmp_path / "adapted" / "preset.json").write_text('{"settings": 3}')
    code, _, err = adapt(catalogue, *asked)
    assert code == 2
    assert "is not what `palindiff adapt` wrote when the run began" in err
    assert "Traceback" not in err
