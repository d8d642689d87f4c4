"""stable_diffusion.py: each base layout becomes a checkpoint that generates as stock, and is exported as it was."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStreamConfig
from palindiff.pretrained.saving import HubMixin
from palindiff.pretrained.stable_diffusion import find_base
from toys.hub_folders import as_old_hub, read_json, with_old_configs, with_scheduler, write_half_of
from toys.stable_diffusion import write_sd1, write_sd2
from toys.stock_generation import differing, dtypes_of, models_of, stock_generation
from toys.text_encoders import LENGTH

CAPTIONS = ["a red apple", "b", ""]
FULL, HALF = torch.float32, torch.float16
SMALL = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
PER_HEAD = {"attention_head_dim": (1, 2, 4, 4)}


@pytest.fixture(scope="module")
def root(stable_diffusion, tmp_path_factory):
    """A folder to write more bases into."""
    return shutil.copytree(stable_diffusion, tmp_path_factory.mktemp("bases") / "all")


def init(source, version, **options):
    return PalindiffPipeline.from_stable_diffusion(
        source, source.parent / f"clip_{version}", options.pop("query_stream", SMALL), **options
    )


def stock_of(folder, **options):
    return StableDiffusionPipeline.from_pretrained(folder, **({"dtype": FULL} | options))


def clip_embeddings(clip):
    """What transformers' own CLIP makes of the captions."""
    tokens = CLIPTokenizer.from_pretrained(clip)(
        CAPTIONS, padding="max_length", max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        features = CLIPModel.from_pretrained(clip).eval().get_text_features(**tokens)
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)


def both_variants(root):
    """Half beside full; the half is written last, so the text encoder's one config says half."""
    folder = shutil.copytree(root / "sd1", root / "both", dirs_exist_ok=True)
    return write_half_of(folder, folder)


def old(root, name):
    return as_old_hub(shutil.copytree(root / name, root / f"old_{name}"))


def old_half_text(root):
    return with_old_configs(shutil.copytree(root / "sd2", root / "half_text"), text_dtype="float16")


LAYOUTS = {
    "1.x": (lambda root: root / "sd1", 1, {}),
    "2.x, v": (lambda root: root / "sd2", 2, {}),
    "2.x, epsilon": (lambda root: write_sd2(root, "epsilon", "epsilon", "PNDMScheduler"), 2, {}),
    "1.x, heads of one width": (lambda root: write_sd1(root, "per_head", unet=PER_HEAD), 1, {}),
    "1.x, linear": (lambda root: write_sd1(root, "linear", unet={"use_linear_projection": True}), 1, {}),
    "2.x, convolutions": (lambda root: write_sd2(root, name="conv", unet={"use_linear_projection": False}), 2, {}),
    "half alone": (lambda root: write_half_of(root / "sd1", root / "half"), 1, {"variant": "fp16"}),
    "half in shards": (
        lambda root: write_half_of(root / "sd2", root / "half_shards", max_shard_size="100KB"), 2, {"variant": "fp16"},
    ),
    "full beside half": (both_variants, 1, {}),
    "half beside full": (both_variants, 1, {"variant": "fp16"}),
    "shards": (lambda root: write_sd1(root, "shards", max_shard_size="100KB"), 1, {}),
    "old 1.x": (lambda root: old(root, "sd1"), 1, {}),
    "old 2.x": (lambda root: old(root, "sd2"), 2, {}),
    "a text config that says half": (old_half_text, 2, {}),
}  # fmt: skip


@pytest.mark.parametrize(("write", "version", "options"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_generates_as_stock_does_and_comes_back_as_it_was(root, tmp_path, write, version, options):
    folder = write(root)
    ours, stock = init(folder, version, **options), stock_of(folder, **options)
    assert differing(ours, stock) == []
    assert set(dtypes_of(ours).values()) == {FULL}
    generation = stock_generation(stock, 2)
    assert np.array_equal(stock_generation(ours, 2), generation)
    ours.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert differing(again, stock) == []
    assert np.array_equal(stock_generation(again, 2), generation)
    full_clip = options.get("variant") is None
    expected = clip_embeddings(root / f"clip_{version}")
    assert torch.equal(ours.encode_text(CAPTIONS), expected) == full_clip  # a half encoder's embeddings are rounded
    assert torch.allclose(ours.encode_text(CAPTIONS), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_half_precision_is_that_of_every_part_and_generates_as_stock(stable_diffusion, name):
    ours, stock = (
        init(stable_diffusion / name, int(name[-1]), dtype=HALF),
        stock_of(stable_diffusion / name, dtype=HALF),
    )
    assert set(dtypes_of(ours).values()) == {HALF}
    assert differing(ours, stock) == []
    assert np.array_equal(stock_generation(ours), stock_generation(stock))
    assert torch.allclose(
        ours.encode_text(CAPTIONS), clip_embeddings(stable_diffusion / f"clip_{name[-1]}"), atol=1e-2
    )
    named = ours.encode_image(torch.randn(2, 4, 8, 8), num_inference_steps=2)
    assert torch.allclose(named.norm(dim=-1), torch.ones(2), atol=1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_the_scheduler_of_the_folder_generates(stable_diffusion, tmp_path, name):
    folder = with_scheduler(shutil.copytree(stable_diffusion / "sd1", tmp_path / "sd1"), name)
    shutil.copytree(stable_diffusion / "clip_1", tmp_path / "clip_1")
    ours, stock = init(folder, 1), stock_of(folder)
    assert type(ours.scheduler).__name__ == name
    assert dict(ours.scheduler.config) == dict(stock.scheduler.config)
    assert np.array_equal(stock_generation(ours), stock_generation(stock))


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("version", [1, 2])
def test_it_names_and_survives_saving(stable_diffusion, tmp_path, version, fusion):
    query_stream = SMALL.model_copy(update={"fusion": fusion})
    ours = init(stable_diffusion / f"sd{version}", version, query_stream=query_stream)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    named = ours.encode_image(z, num_inference_steps=2)
    assert torch.allclose(named.norm(dim=-1), torch.ones(2), atol=1e-6)
    assert not torch.equal(named[0], named[1])
    ours.save_pretrained(tmp_path)
    again = PalindiffPipeline.from_pretrained(tmp_path)
    assert again.query_stream.config.fusion == fusion
    assert torch.equal(again.encode_image(z, num_inference_steps=2), named)
    assert torch.equal(again.encode_text(CAPTIONS), ours.encode_text(CAPTIONS))
    assert (len(again.query_stream.clip_projection.layers) > 0) == (version == 2)


def test_new_weights_follow_the_seed_and_disturb_no_other_draw(stable_diffusion):
    def draw(seed):
        torch.manual_seed(5)
        stream = init(stable_diffusion / "sd1", 1, seed=seed).query_stream
        return stream.predictor.weight, torch.rand(1)

    (first, after), (again, _), (other, after_other) = draw(0), draw(0), draw(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(after, after_other)


def test_parts_beside_are_kept_and_may_be_left_out(stable_diffusion, tmp_path):
    whole = init(stable_diffusion / "sd1", 1)
    whole.save_pretrained(tmp_path)
    theirs = read_json(stable_diffusion / "sd1" / "model_index.json")
    index = read_json(tmp_path / "model_index.json")
    ours = {"query_stream": ["palindiff", "QueryStream"], "query_scheduler": ["diffusers", "DDIMScheduler"]}
    as_everywhere = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    assert index == theirs | ours | as_everywhere
    without = init(stable_diffusion / "sd1", 1, safety_checker=None, requires_safety_checker=False)
    assert without.safety_checker is None
    assert models_of(whole).keys() - models_of(without).keys() == {"safety_checker"}


def test_the_checkpoint_tells_where_it_comes_from(stable_diffusion, tmp_path):
    (base := tmp_path / "sd1").mkdir()
    shutil.copytree(stable_diffusion / "sd1", base, dirs_exist_ok=True)
    shutil.copytree(stable_diffusion / "clip_1", tmp_path / "clip_1")
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    card = init(base, 1).model_card
    assert "license: creativeml-openrail-m" in card
    assert "from `sd1`: creativeml-openrail-m" in card
    assert "from `clip_1`: unknown" in card
    assert "it cannot name images before it is trained" in card
    assert str(tmp_path) not in card


def test_a_hub_name_is_asked_for_with_what_the_caller_says(monkeypatch, stable_diffusion):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(stable_diffusion / "sd1")

    monkeypatch.setattr(HubMixin, "download", download)
    assert find_base("someone/generator", "fp16", revision="r", token="t") == stable_diffusion / "sd1"
    assert asked == {
        "name": "someone/generator",
        "variant": "fp16",
        "revision": "r",
        "token": "t",
        "use_safetensors": True,
    }


def test_an_older_name_of_the_type_works(stable_diffusion):
    ours = init(stable_diffusion / "sd1", 1, torch_dtype=torch.bfloat16)
    assert set(dtypes_of(ours).values()) == {torch.bfloat16}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers_are_refused_by_name(part, value, root, tmp_path):
    folder = shutil.copytree(root / "sd1", tmp_path / "sd1")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"`[\w.]+` of the part `{part}` holds 1 numbers .* Get an undamaged copy"):
        PalindiffPipeline.from_stable_diffusion(folder, root / "clip_1", SMALL)


def test_a_weight_too_large_for_half_precision_is_refused_when_loaded_so(root, tmp_path):
    folder = shutil.copytree(root / "sd1", tmp_path / "sd1")
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = 1e5
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`conv_in.bias` of the part `unet` holds 1 numbers .* in torch.float16"):
        PalindiffPipeline.from_stable_diffusion(folder, root / "clip_1", SMALL, dtype=HALF)
    PalindiffPipeline.from_stable_diffusion(folder, root / "clip_1", SMALL)


def test_a_projection_that_is_no_number_is_refused(root, tmp_path):
    clip = shutil.copytree(root / "clip_1", tmp_path / "clip_1")
    (file,) = clip.glob("*.safetensors")
    tensors = load_file(file)
    tensors["text_projection.weight"][0, 0] = math.inf
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`weight` of the part `text projection` holds 1 numbers"):
        PalindiffPipeline.from_stable_diffusion(root / "sd1", clip, SMALL)
