"""`palindiff evaluate` with a toy checkpoint: records, what is reused, several settings, and bad data."""

import json
import shutil

import pytest
import torch
from PIL import Image

from palindiff.evaluation.collapse import alignment, effective_rank, mean_pairwise_cosine
from palindiff.evaluation.results import read_results
from palindiff.inference.pipeline import PalindiffPipeline

LABELS = ["red", "green", "blue"]


def test_a_record_holds_what_the_pipeline_answers(evaluate, images, model, records):
    code, out, err = evaluate()
    assert code == 0, err
    assert "acc1" in out
    found = {each["task"]: each for each in records().values()}
    assert set(found) == {"zeroshot_classification", "zeroshot_retrieval"}
    pipeline = PalindiffPipeline.from_pretrained(model)
    files = [images / f"{i:02d}.png" for i in range(12)]
    truth = torch.tensor([sorted(LABELS).index(LABELS[i % 3]) for i in range(12)])
    answers = pipeline.classify(files, sorted(LABELS)).argmax(dim=1)
    metrics = found["zeroshot_classification"]["metrics"]
    assert metrics["acc1"] == pytest.approx((answers == truth).double().mean().item())
    captions = [caption for i in range(12) for caption in (f"{LABELS[i % 3]} {i}", f"number {i}")]
    scores = pipeline.rank(files, captions)
    hits = []
    for i in range(12):
        own = scores[i, 2 * i : 2 * i + 2].max()
        others = torch.cat([scores[i, : 2 * i], scores[i, 2 * i + 2 :]])
        hits.append(bool((others < own).all()))
    record = found["zeroshot_retrieval"]
    assert record["metrics"]["text_retrieval_recall@1"] == pytest.approx(sum(hits) / 12)
    assert record["num_items"]["text_retrieval_recall@1"] == 12
    assert record["num_items"]["image_retrieval_recall@1"] == 24
    low, high = record["intervals"]["text_retrieval_recall@5"]
    assert low <= record["metrics"]["text_retrieval_recall@5"] <= high


def test_use_of_the_text_diffusion_is_measured(evaluate, images, records):
    code, _, err = evaluate(tasks=["chain_use"])
    assert code == 0, err
    (record,) = records().values()
    cosines = {name: value for name, value in record["metrics"].items() if name.startswith("chain_cosine_noise")}
    assert len(cosines) == 5
    assert all(-1 <= value <= 1 for value in cosines.values())
    assert record["metrics"]["chain_image_to_text_recall_1_from_noise"] >= 0
    assert record["intervals"] == dict.fromkeys(record["metrics"])


def test_collapse_is_that_of_images_and_of_captions(evaluate, images, model, records):
    code, _, err = evaluate(tasks=["collapse"])
    assert code == 0, err
    (record,) = records().values()
    pipeline = PalindiffPipeline.from_pretrained(model)
    e_0_hat = pipeline.encode_image([images / f"{i:02d}.png" for i in range(12)])
    e = pipeline.encode_text([f"{LABELS[i % 3]} {i}" for i in range(12)])
    assert record["metrics"]["image_effective_rank"] == pytest.approx(effective_rank(e_0_hat), rel=1e-4)
    assert record["metrics"]["text_mean_pairwise_cosine"] == pytest.approx(mean_pairwise_cosine(e), abs=1e-5)
    assert record["metrics"]["alignment"] == pytest.approx(alignment(e_0_hat, e), abs=1e-5)


def test_a_linear_probe_is_trained_on_the_training_split(evaluate, images, records):
    shutil.copytree(images, images.parent / "train")
    code, _, err = evaluate(tasks=["linear_probe"])
    assert code == 2
    assert "has the same images" in err
    Image.new("RGB", (8, 8), (0, 91, 200)).save(images.parent / "train" / "00.png")
    code, _, err = evaluate(tasks=["linear_probe"])
    assert code == 0, err
    (record,) = records().values()
    assert record["task"] == "linear_probe"
    assert record["metrics"]["lp_acc1"] >= 1 / 3  # the very images it was trained on
    assert record["chance"]["lp_acc1"] == pytest.approx(1 / 3)
    assert record["num_items"] == {"lp_acc1": 12, "lp_strength": 12}
    Image.new("RGB", (8, 8), "black").save(images.parent / "train" / "00.png")
    evaluate(tasks=["linear_probe"])
    assert len(records()) == 2


def test_settings_are_combined_and_each_costs_what_it_calls(evaluate, images, tmp_path, records):
    arguments = ("--steps", "1,3", "--guidance-scale", "1,2", "--seeds", "0-1", "--results", "rows.json")
    assert evaluate(*arguments, tasks=["retrieval"])[0] == 0
    found = records()
    assert len(found) == 8
    for record in found.values():
        setting = record["settings"]["options"]
        guided = 1 if setting["guidance_scale"] == 1 else 2
        assert record["cost"]["calls of query stream"] == setting["num_inference_steps"] * guided
        assert record["cost"]["calls of U-Net"] == guided
        assert record["cost"]["calls of VAE"] == 1
        assert record["cost"]["tflop"] > 0
    rows = read_results(tmp_path / "rows.json").rows
    assert len(rows) == 8 * len(record["metrics"])
    assert set(rows[0]) == {
        "name", "seed", "metric", "value", "ci_low", "ci_high", "n", "config_hash", "commit", "train_tflop",
        "tflop_per_image", "seconds",
    }  # fmt: skip


def test_equal_settings_are_reused_and_others_are_not(evaluate, images, tmp_path, monkeypatch, records):
    evaluate(tasks=["classification"])
    ((name, first),) = records().items()
    file = tmp_path / "out" / name
    file.write_text(json.dumps(first | {"metrics": first["metrics"] | {"acc1": 0.123}}))
    evaluate(tasks=["classification"])
    assert records()[name]["metrics"]["acc1"] == 0.123
    evaluate("--template", "a {}", tasks=["classification"])
    assert len(records()) == 2
    file.write_text("{")  # damaged: measured again
    evaluate(tasks=["classification"])
    assert records()[name]["metrics"] == first["metrics"]
    Image.new("RGB", (8, 8), "black").save(images / "00.png")
    evaluate(tasks=["classification"])
    assert len(records()) == 3


def of_generation(num_images=12):
    """Options that need no package beside palindiff's own."""
    options = {"num_images": num_images, "num_inference_steps": 2, "extractors": "[]", "size_px": 16}
    return [part for key, value in options.items() for part in ("--set", f"generation.{key}={value}")]


def test_generation_is_measured_for_each_seed_and_reused(evaluate, images, tmp_path, records):
    code, _, err = evaluate(*of_generation(), "--seeds", "0,1", tasks=["generation"])
    assert code == 0, err
    found = records()
    assert sorted(record["seed"] for record in found.values()) == [0, 1]
    for record in found.values():
        assert set(record["metrics"]) == {f"caption_to_generated_recall_{k}" for k in (1, 5, 10)}
        assert record["cost"]["calls of U-Net"] == 2
        assert record["details"]["caption_to_generated_recall_1"]["file_format"] == "png"
    generated = sorted((tmp_path / "out" / "generated").glob("*/images/*.png"))
    assert len(generated) == 24
    generated[0].unlink()
    evaluate(*of_generation(), "--seeds", "0,1", tasks=["generation"])
    assert not generated[0].exists(), "a record of equal settings is reused"
    changed = ("--set", "generation.fit=pad", "--seeds", "1")
    assert evaluate(*of_generation(), *changed, tasks=["generation"])[0] == 0
    assert len(list((tmp_path / "out" / "generated").iterdir())) == 2, "what is measured changes no image"
    evaluate(*of_generation(11), tasks=["generation"])
    assert len(records()) == 4


def test_any_stable_diffusion_generates(evaluate, images, model, palindiff, records):
    code, _, err = palindiff("export", "--model", model, "--output", "stock")
    assert code == 0, err
    code, _, err = evaluate(*of_generation(), "--model", "stock", tasks=["generation"])
    assert code == 0, err
    (of_stock,) = records().values()
    evaluate(*of_generation(), tasks=["generation"])
    assert [each["metrics"] for each in records().values()] == [of_stock["metrics"]]
    code, _, err = evaluate("--model", "stock", tasks=["retrieval"])
    assert code == 2
    assert "Stable Diffusion alone cannot classify or rank images" in err


def test_options_of_tasks_are_checked_together(evaluate, images, tmp_path):
    changes = ("--set", "generation.num_image=3", "--set", "chain_images=0")
    code, _, err = evaluate(*changes, tasks=["retrieval"])
    assert code == 2
    assert "2 problems" in err
    assert "`num_images`" in err
    assert not (tmp_path / "out").exists()


def test_processes_share_the_images_and_the_first_measures(evaluate, images, monkeypatch, records):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, _ = evaluate(tasks=["classification"])
    assert (code, out) == (0, "")
    assert not records()
    monkeypatch.setenv("RANK", "0")
    assert evaluate(tasks=["classification"])[0] == 0
    assert len(records()) == 1


def test_a_dry_run_names_the_settings(evaluate, images, tmp_path):
    code, out, _ = evaluate("--seeds", "0-2,1", "--dry-run")
    assert code == 0
    assert out.count("seed=") == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "tasks", "message"),
    [
        (["--seeds", "0-x"], ["retrieval"], "--seeds has `x`"),
        (["--steps", "0"], ["retrieval"], "`num_inference_steps` is 0 in --steps"),
        (["--seeds", "5-3"], ["retrieval"], "--seeds has `5-3`"),
        (["--seeds", "-1"], ["retrieval"], "`seed` is -1"),
        (["--set", "retrieval_ks=[]"], ["retrieval"], "`retrieval_ks`"),
        (["--template", "a photo"], ["classification"], "has no `{}`"),
        (["--task", "generation"], ["retrieval"], "subset"),
        (["--results", "/proc/x.json"], ["retrieval"], "Results cannot be written"),
        (["--set", "generation.seed=3"], ["generation"], "Use --seeds"),
        (["--steps", "2000"], ["retrieval"], "Expected 1 to 1000"),
        ([], ["naming"], "--task is naming"),
        (["--split", "train"], ["retrieval"], "no images of the split `train`"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, tasks, message, evaluate, images, tmp_path):
    code, _, err = evaluate(*arguments, tasks=tasks)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_data_that_do_not_fit_a_task_are_refused_before_anything_is_embedded(evaluate, images, tmp_path):
    lines = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    (images / "metadata.jsonl").write_text("\n".join(json.dumps(each | {"label": None}) for each in lines))
    code, _, err = evaluate(tasks=["classification"])
    assert code == 2
    assert "has images without a class" in err
    (images / "metadata.jsonl").write_text("\n".join(json.dumps(each) for each in lines[:3]))
    for file in sorted(images.glob("*.png"))[3:]:
        file.unlink()
    code, _, err = evaluate(tasks=["retrieval"])
    assert code == 2
    assert "3 images and 6 different captions" in err
    assert not (tmp_path / "out").exists()


def test_an_option_of_one_task_leaves_records_of_others_as_they_are(evaluate, images, records):
    evaluate()
    evaluate("--template", "a {}")
    assert sorted(each["task"] for each in records().values()) == [
        "zeroshot_classification", "zeroshot_classification", "zeroshot_retrieval"
    ]  # fmt: skip


def test_equal_weights_under_another_name_keep_their_numbers(evaluate, images, records, model, tmp_path):
    evaluate(tasks=["retrieval"])
    ((name, first),) = records().items()
    shutil.copytree(model, tmp_path / "renamed")
    evaluate("--model", "renamed", tasks=["retrieval"])
    assert records() == {name: first | {"model": "renamed"}}


def test_images_that_cannot_be_read_are_counted_and_never_left_out_unasked(evaluate, images, records):
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:40])
    code, _, err = evaluate("--on-bad", "skip", tasks=["retrieval"])
    assert code == 0, err
    assert "1 of 12 images of `set/test` cannot be read and were left out" in " ".join(err.split())
    (record,) = records().values()
    assert (record["num_left_out"], record["num_items"]["text_retrieval_recall@1"]) == (1, 11)
    code, _, err = evaluate(tasks=["retrieval"])
    assert code == 2
    assert "1 of 12 images of `set/test` cannot be read. Expected all" in " ".join(err.split())


def test_the_folder_of_an_interrupted_run_is_continued(evaluate, images, records, tmp_path):
    evaluate(tasks=["retrieval"])
    expected = [each["metrics"] for each in records().values()]
    (folder,) = (tmp_path / "out" / "embeddings").iterdir()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".embeddings.json.123").write_text("{")
    for file in (tmp_path / "out").glob("*.json"):
        file.unlink()
    code, _, err = evaluate(tasks=["retrieval"])
    assert code == 0, err
    assert [each["metrics"] for each in records().values()] == expected
