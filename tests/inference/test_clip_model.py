"""clip_model.py: a transformers CLIP as an embedder, against transformers, and the checks that a pipeline has."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from transformers import CLIPImageProcessorPil, CLIPModel

from palindiff.data.images import ImageFileError, read_pixels
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.cost import embedding_cost
from palindiff.evaluation.evaluators import ContrastiveEvaluationConfig, EvaluationImages, classification, retrieval
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.embedder import Embedder
from palindiff.inference.embeddings import embed_images, embedding_folder, read_all
from toys.text_encoders import QUERY_WIDTH

LABELS, TEMPLATES = ["red", "apple"], ["a {}", "the {} x"]


@pytest.fixture(scope="module")
def model(encoder_folder):
    return ClipModel.from_pretrained(encoder_folder / "clip")


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(5)]


def photo(width, height):
    """Smooth areas with edges, as a photo has."""
    image = Image.new("RGB", (width, height), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height * 0.6, width, height), fill=(60, 120, 40))
    draw.ellipse((width * 0.3, height * 0.2, width * 0.7, height * 0.8), fill=(200, 60, 50))
    return image.filter(ImageFilter.GaussianBlur(2))


def test_images_of_its_size_are_embedded_as_transformers_does(model, images, encoder_folder):
    stock = CLIPModel.from_pretrained(encoder_folder / "clip").eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        expected = F.normalize(stock.get_image_features(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_image(images), expected, rtol=0, atol=1e-6)  # float32, another order


@pytest.mark.parametrize("size", [(320, 240), (200, 300), (224, 224)])
def test_images_of_other_sizes_are_fitted_nearly_as_clip_s_processor_does(size):
    """The same middle square, resized by Lanczos instead of bicubic interpolation: what differs is the edges."""
    image = photo(*size)
    processor = CLIPImageProcessorPil(do_normalize=False)
    theirs = torch.from_numpy(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
    ours = (read_pixels(image, 224) + 1) / 2
    difference = (ours - theirs).abs() * 255
    assert difference.mean() < 1  # grey level of 255
    assert difference.max() < 16


def test_a_batch_changes_no_embedding(model, images):
    whole = model.encode_image(images)
    torch.testing.assert_close(model.encode_image(images, batch_size=2), whole, rtol=0, atol=1e-6)  # sums in parts
    torch.testing.assert_close(model.encode_image(images[3]), whole[3:4], rtol=0, atol=1e-6)
    texts = model.encode_text(["a", "b c", "a red apple"])
    torch.testing.assert_close(model.encode_text(["a red apple"]), texts[2:], rtol=0, atol=1e-6)


def test_labels_are_the_mean_over_templates(model):
    by_hand = []
    for label in LABELS:
        e = torch.stack([model.encode_text([template.replace("{}", label)])[0] for template in TEMPLATES])
        by_hand.append(e.mean(0) / e.mean(0).norm())
    torch.testing.assert_close(model.encode_labels(LABELS, TEMPLATES), torch.stack(by_hand), rtol=0, atol=1e-6)


def test_it_serves_where_an_embedder_is_wanted(model, toy_parts, tmp_path):
    embedder: Embedder = model
    rows = open_images(DataConfig(path=str(toy_parts / "images")))
    folder = embedding_folder(tmp_path / "embeddings", embedder, "clip", rows, "train", {}, "crop")
    embed_images(embedder, rows, [folder], batch_size=5)
    vectors, _ = read_all(tmp_path / "embeddings")
    expected = model.encode_image([row.source for row in rows])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)  # batches of 5
    assert embedding_cost(embedder, {}, 2)["calls of image encoder"] == 1
    assert embedding_cost(embedder, {}, 2)["tflop"] > 0


def test_evaluators_run_on_it(model, images):
    captions = ["a", "b", "a red apple", "x y", "z"]
    scores = model.encode_image(images) @ model.encode_text(captions).T
    data = EvaluationImages(images, captions, ["u", "v", "u", "v", "u"])
    options = ContrastiveEvaluationConfig(templates=TEMPLATES)
    found = {row["metric"]: row["value"] for row in retrieval(model, data, options)}
    is_first = scores.argmax(dim=1) == torch.arange(5)
    assert found["image_to_text_recall_1"] == pytest.approx(is_first.float().mean().item())
    assert found["text_to_image_recall_1"] == pytest.approx(
        (scores.argmax(0) == torch.arange(5)).float().mean().item()
    )
    classes = (model.encode_image(images) @ model.encode_labels(["u", "v"], TEMPLATES).T).argmax(1)
    accuracy = (classes == torch.tensor([0, 1, 0, 1, 0])).float().mean().item()
    assert classification(model, data, options)[0]["value"] == pytest.approx(accuracy)


def test_progress_counts_images(model, images):
    counts = []
    model.encode_image(images, batch_size=2, progress=lambda *count: counts.append(count))
    assert counts == [("images", 2, 5), ("images", 4, 5), ("images", 5, 5)]


def test_saving_and_loading_keeps_every_embedding(model, images, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    again = ClipModel.from_pretrained(tmp_path / "copy")
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert torch.equal(again.encode_text(["a red apple"]), model.encode_text(["a red apple"]))
    assert again.fingerprint == model.fingerprint
    assert again.logit_scale == model.logit_scale
    assert again.to("cpu").device.type == "cpu"
    assert again.image_size_px == 16


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m: m.encode_image([]), ValueError, "No images were given. Expected at least one. Pass"),
        (lambda m: m.encode_image(["nowhere.png"]), ImageFileError, "`nowhere.png` does not exist"),
        (lambda m: m.encode_image([3]), TypeError, "A `int` was given to be encoded"),
        (lambda m: m.encode_image(torch.zeros(1, 3, 16, 16)), TypeError, "A `Tensor` was given to be encoded"),
        (lambda m: m.encode_image(["a.png"], batch_size=0), ValueError, "`batch_size` is 0"),
        (lambda m: m.encode_image(["a.png"], fit="squash"), ValueError, "`fit` is 'squash'. Expected 'crop'"),
        (lambda m: m.encode_text("a"), TypeError, "`captions` is a `str`. Expected a list of captions"),
        (lambda m: m.encode_text([]), ValueError, "`captions` is empty"),
        (lambda m: m.encode_labels(["a", "a"]), ValueError, "The label 'a' is repeated"),
        (lambda m: m.encode_labels(["a"], ["b"]), ValueError, "The template 'b' has no `{}`"),
        (
            lambda m: m.embed_pixels(torch.zeros(1, 3, 16, 16), [{"seed": 1}]),
            ValueError,
            "`seed` is given to a contrastive model. Expected no option.*Remove it",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(model)


def test_embeddings_are_of_unit_length_in_one_space(model, images):
    for vectors in (model.encode_image(images), model.encode_text(["a", "b"])):
        assert vectors.dtype == torch.float32
        assert vectors.shape[1] == QUERY_WIDTH
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)), rtol=0, atol=1e-6)
