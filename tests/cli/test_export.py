"""`palindiff export`: a stock folder, whole or not at all."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.model_card import CardFacts, write_card
from toys.saving import generated, write_stable_diffusion


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    write_stable_diffusion(root)
    return root


@pytest.fixture
def export(palindiff, root):
    return lambda *options: palindiff("export", "--model", root / "checkpoint", *options)


def test_the_folder_is_stock_and_generates_the_same(export, root, tmp_path):
    code, out, err = export("--output", tmp_path / "stock")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'stock'}: Stable Diffusion, ")
    assert {path.name for path in (tmp_path / "stock").iterdir()} == {path.name for path in (root / "base").iterdir()}
    index = (tmp_path / "stock" / "model_index.json").read_text()
    assert json.loads(index) == json.loads((root / "base" / "model_index.json").read_text())
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "stock")
    assert torch.equal(generated(stock), generated(PalindiffPipeline.from_pretrained(root / "checkpoint")))
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_variant_holds_weights_of_its_type(export, root, tmp_path, variant, dtype):
    code, _, err = export("--output", tmp_path / "stock", "--variant", variant)
    assert (code, err) == (0, "")
    weights = {path.parent.name: path for path in (tmp_path / "stock").rglob("*.safetensors")}
    assert weights.keys() == {"unet", "vae", "text_encoder"}
    for part, path in weights.items():
        assert f".{variant}." in path.name
        here = load_file(next((root / "base" / part).glob("*.safetensors")))
        there = load_file(path)
        assert all(torch.equal(there[name], here[name].to(dtype)) for name in here if here[name].is_floating_point())
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "stock", variant=variant, dtype=torch.float32)
    assert generated(stock).isfinite().all()


def test_large_weights_are_split(export, root, tmp_path):
    code, _, err = export("--output", tmp_path / "stock", "--max-shard-size", "50KB")
    assert (code, err) == (0, "")
    for part in ("unet", "text_encoder"):
        assert len(list((tmp_path / "stock" / part).glob("*-of-*.safetensors"))) > 1
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "stock")
    assert torch.equal(generated(stock), generated(StableDiffusionPipeline.from_pretrained(root / "base")))


def test_the_card_comes_along(export, root, tmp_path):
    card = write_card(root / "checkpoint", CardFacts(name="toy"))
    try:
        assert export("--output", tmp_path / "stock")[0] == 0
    finally:
        card.unlink()
    assert "license_name: unknown" in (tmp_path / "stock" / "README.md").read_text()


def test_a_folder_that_holds_something_is_refused_before_anything_is_loaded(export, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for options in ((), ("--dry-run",)):
        code, out, err = export("--output", tmp_path, *options)
        assert (code, out) == (2, "")
        assert err == (
            f"palindiff: `{tmp_path}` exists and is not empty. Expected a new or empty folder. Remove it or name "
            "another.\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_that_cannot_be_loaded_leaves_nothing(palindiff, root, tmp_path):
    code, _, err = palindiff("export", "--model", root / "base", "--output", tmp_path / "stock")
    assert code == 2
    assert "without `query_stream` and `query_scheduler`" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["5", "GB", "five", "-1GB"])
def test_a_size_that_is_none_is_refused(export, tmp_path, size):
    code, _, err = export("--output", tmp_path / "stock", "--max-shard-size", size)
    assert code == 2
    assert f"--max-shard-size is {size}. Expected a number and a unit, such as 5GB or 200MB." in err


def test_a_dry_run_writes_nothing(export, root, tmp_path):
    code, out, _ = export("--output", tmp_path / "stock", "--variant", "fp16", "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        f"model: {root / 'checkpoint'}", f"output: {tmp_path / 'stock'}", "variant: fp16", "max_shard_size: None"
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())
