"""clip_score.py: the score of a toy CLIP by its own forward, values by hand, and what is refused."""

import importlib
import importlib.machinery
import shutil
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from palindiff.evaluation.clip_score import OpenClipRN50, TransformersClip, clip_score_row, clip_scores
from toys.image_features import toy_pixels
from toys.stable_diffusion import write_clip_of

CAPTIONS = [
    "a red apple",
    "b",
    "a red apple a red apple a red apple a red apple",
]  # the last has 14 tokens, and 12 are read


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = write_clip_of(tmp_path_factory.mktemp("clip"))
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder


def changed(folder, tmp_path, change):
    copy = tmp_path / "clip"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def test_scores_by_hand():
    e_image = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    e_text = torch.tensor([[4.0, 3.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.1]])
    assert clip_scores(e_image, e_text).tolist() == pytest.approx([96, 0, 0, 100], abs=1e-4)  # 24 / 25; clamped; right
    with pytest.raises(ValueError, match="Pass one caption for each image"):  # angle; parallel
        clip_scores(e_image, e_text[:3])


def test_the_score_is_the_cosine_of_the_clip_s_own_forward(clip_folder):
    """transformers' `logits_per_image` is that cosine times its logit scale."""
    pixels, clip = toy_pixels(3, side=20), TransformersClip(clip_folder)
    row = clip_score_row(clip, torch.cat([clip.embed_images(each[None]) for each in pixels]), CAPTIONS)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]
    x = CLIPImageProcessor.from_pretrained(clip_folder)(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        cosines = model(**tokens, pixel_values=x).logits_per_image.diag() / model.logit_scale.exp()
    assert row["metric"] == "clip_score"
    assert row["value"] == pytest.approx((100 * cosines).clamp(min=0).mean().item(), abs=1e-3)
    assert cosines.min() > 0.1
    assert cosines.std() > 0.01
    assert row["n"] == 3
    assert row["num_captions_cut"] == 1
    assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_the_row_names_the_model_and_its_weights(clip_folder, tmp_path):
    def other_weights(folder):
        model = CLIPModel.from_pretrained(folder)
        model.visual_projection.weight.data *= 2
        model.save_pretrained(folder)

    name, other = (
        TransformersClip(each).name for each in (clip_folder, changed(clip_folder, tmp_path, other_weights))
    )
    assert name.startswith("clip_1 (")
    assert name.split()[1] != other.split()[1]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), FileNotFoundError,
         "has no preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), FileNotFoundError,
         "pytorch_model.bin.*pickles run code"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), ValueError, "of type `bert`"),
        (lambda folder: CLIPModel.from_pretrained(folder).vision_model.save_pretrained(folder), ValueError,
         "of type `clip_vision_model`"),
    ],
)  # fmt: skip
def test_folders_that_are_no_whole_clip_are_refused(clip_folder, tmp_path, change, error, sentence):
    with pytest.raises(error, match=sentence):
        TransformersClip(changed(clip_folder, tmp_path, change))


def test_missing_weights_are_refused_and_not_drawn(clip_folder, tmp_path):
    def without_projection(folder):
        weights = CLIPModel.from_pretrained(folder).state_dict()
        weights.pop("visual_projection.weight")
        CLIPModel.from_pretrained(folder).save_pretrained(folder, state_dict=weights)

    with pytest.raises(ValueError, match=r"lacks `visual_projection.weight`"):
        TransformersClip(changed(clip_folder, tmp_path, without_projection))


def test_an_open_clip_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"open_clip cannot be imported.*the folder of a transformers CLIP"):
        OpenClipRN50()


class Anything(type):
    """A class with any attribute: what open_clip takes of torchvision while it is imported."""

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class NoTorchvision(ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.__path__, self.__spec__ = [], importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


@pytest.fixture
def open_clip(monkeypatch):
    """open_clip itself, imported over an empty torchvision; its RN50 at toy size."""
    if not (find_spec("open_clip") and find_spec("ftfy")):
        pytest.skip("needs open_clip_torch and ftfy")
    if find_spec("torchvision") is None:
        stubs = {
            name: NoTorchvision(name)
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
                         "torchvision.ops", "torchvision.ops.misc")
        }  # fmt: skip
        for name, stub in stubs.items():
            monkeypatch.setitem(sys.modules, name, stub)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(stubs[parent], child, stub)
    module = importlib.import_module("open_clip")
    config = {
        "embed_dim": 16, "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    monkeypatch.setitem(module.factory._MODEL_CONFIGS, "RN50-quickgelu", config)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
        del sys.modules[name]


def test_open_clip_s_rn50_of_openai_is_asked_for_and_scored(open_clip, monkeypatch):
    """Without its weights, which are a download: the call is recorded, and the toy network is scored."""
    create, asked = open_clip.create_model, []

    def recorded(name, **options):
        asked.append((name, options))
        torch.manual_seed(0)
        return create(name)

    monkeypatch.setattr(open_clip, "create_model", recorded)
    clip, pixels, captions = OpenClipRN50(), toy_pixels(2, side=40), ["a red apple", "word " * 90]
    assert asked == [("RN50-quickgelu", {"pretrained": "openai", "require_pretrained": True})]
    row = clip_score_row(clip, clip.embed_images(pixels), captions)
    model, mean, std = clip.model, clip.model.visual.image_mean, clip.model.visual.image_std
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for each in pixels]
    x = torch.stack([torch.tensor(list(each.tobytes())).reshape(224, 224, 3).permute(2, 0, 1) for each in images])
    x = (x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    e_image, e_text = model.encode_image(x), model.encode_text(open_clip.get_tokenizer("RN50")(captions))
    by_hand = (100 * F.cosine_similarity(e_image, e_text)).clamp(min=0).mean().item()
    assert row["value"] == pytest.approx(by_hand, abs=1e-3)
    assert row["metric"] == "clip_score_rn50_openai"
    assert row["num_captions_cut"] == 1
