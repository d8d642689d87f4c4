"""`palindiff init`: a checkpoint out of Stable Diffusion and its CLIP, whole or not at all."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from toys.hub_folders import read_json, with_hole, write_configs_of, write_half_of
from toys.single_file import write_single_file
from toys.stable_diffusion import write_sd1, write_sd2
from toys.stock_generation import differing, dtypes_of

SMALL = [
    f"--set=query_stream.{setting}" for setting in ("num_head_layers=1", "head_width=16", "head_dim=8")
]  # the bundled recipes' head is the paper's


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    write_sd1(root)
    write_sd2(root)
    return root


@pytest.fixture
def init(palindiff, root, tmp_path):
    """Run the command on a base below `root` into `start` -> exit code, stdout, stderr."""

    def run(*options, source="sd1", clip="clip_1", output=tmp_path / "start"):
        where = ("--from", root / source, "--text", root / clip, "--output", output)
        code, out, err = palindiff("init", *where, *SMALL, *options)
        return code, out, "\n".join(line for line in err.splitlines() if "%|" not in line)

    return run


def weights_of(folder):
    return load_file(folder / "query_stream" / "diffusion_pytorch_model.safetensors")


def test_the_folder_generates_as_the_base_and_export_gives_it_back(palindiff, init, root, tmp_path):
    code, out, err = init()
    assert (code, err) == (0, "")
    start = tmp_path / "start"
    sentence = "It generates images; train it before using it for classification or retrieval."
    assert out.splitlines()[-2] == f"written: {start}. {sentence}"
    assert out.splitlines()[-1].startswith("next: palindiff train --recipe ")
    assert out.splitlines()[-1].endswith(f"--set base.source={start} --set data.path=DIR")
    pipeline, base = (
        PalindiffPipeline.from_pretrained(start), StableDiffusionPipeline.from_pretrained(root / "sd1")
    )  # fmt: skip
    counts = {name: sum(each.numel() for each in getattr(pipeline, name).parameters()) for name in
              ("unet", "vae", "text_encoder", "query_stream")}  # fmt: skip
    new = {"query_stream": ", new"}
    printed = [f"{name}: {count:,} parameters{new.get(name, '')}" for name, count in counts.items()]
    assert out.splitlines()[:-2] == printed
    assert pipeline.query_stream.config.fusion == "one_way"
    assert differing(pipeline, base) == []
    assert palindiff("export", "--model", start, "--output", tmp_path / "stock")[0] == 0
    assert differing(StableDiffusionPipeline.from_pretrained(tmp_path / "stock"), base) == []
    assert (start / "README.md").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"start", "stock"}


def test_json_holds_the_same(init, root, tmp_path):
    code, out, _ = init("--json", "--seed", 3)
    assert code == 0
    document = json.loads(out)
    counts = document.pop("parameters")
    assert document == {
        "from": str(root / "sd1"), "text": str(root / "clip_1"), "output": str(tmp_path / "start"), "seed": 3
    }  # fmt: skip
    unet = load_file(root / "sd1" / "unet" / "diffusion_pytorch_model.safetensors")
    assert counts["unet"] == sum(weight.numel() for weight in unet.values())
    assert list(counts) == ["unet", "vae", "text_encoder", "query_stream"]


def test_the_seed_decides_the_new_weights(init, tmp_path):
    drawn = {}
    for name, options in {"none": (), "zero": ("--seed", 0), "one": ("--seed", 1)}.items():
        assert init(*options, output=tmp_path / name)[0] == 0
        drawn[name] = weights_of(tmp_path / name)["predictor.weight"]
    assert torch.equal(drawn["none"], drawn["zero"])
    assert not torch.equal(drawn["none"], drawn["one"])


def test_recipe_and_set_choose_the_query_stream(init, tmp_path):
    code, _, _ = init("--recipe", "diffdis-cc3m", "--set", "query_stream.gamma=0.5")
    assert code == 0
    config = read_json(tmp_path / "start" / "query_stream" / "config.json")
    assert (config["fusion"], config["gamma"], config["head_width"]) == ("joint", 0.5, 16)


def test_a_variant_is_read(init, root, tmp_path):
    if not (root / "half").exists():
        write_half_of(root / "sd1", root / "half")
    code, _, err = init(source="half")
    assert code == 2
    assert "holds its weights as variant fp16 only" in err
    assert "--variant fp16" in err
    code, _, err = init("--variant", "fp16", source="half")
    assert (code, err) == (0, "")
    loaded = PalindiffPipeline.from_pretrained(tmp_path / "start")
    assert set(dtypes_of(loaded).values()) == {torch.float32}


def test_a_single_file_of_version_2_takes_its_configs(init, root, tmp_path):
    write_single_file(root / "sd2", root / "sd2.safetensors")
    write_configs_of(root / "sd2", tmp_path / "configs")
    code, _, err = init(source="sd2.safetensors", clip="clip_2")
    assert code == 2
    assert "--config DIR" in err
    code, _, err = init("--config", tmp_path / "configs", source="sd2.safetensors", clip="clip_2")
    assert (code, err) == (0, "")
    base = StableDiffusionPipeline.from_pretrained(root / "sd2")
    assert differing(PalindiffPipeline.from_pretrained(tmp_path / "start"), base) == []


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_loads_and_writes_nothing(palindiff, tmp_path, as_json):
    """Nothing there is: neither base nor CLIP exists."""
    options = ["--from", "someone/generator", "--text", "someone/clip", "--output", tmp_path / "new" / "start"]
    code, out, err = palindiff("init", *options, *SMALL, "--dry-run", *(["--json"] if as_json else []))
    assert (code, err) == (0, "")
    assert not list(tmp_path.iterdir())
    plan = json.loads(out) if as_json else dict(line.split(": ", 1) for line in out.splitlines())
    assert plan["from"] == "someone/generator"
    assert plan["text"] == "someone/clip"
    assert plan["output"] == str(tmp_path / "new" / "start")
    assert "fusion='one_way'" in plan["query_stream"]
    assert "head_width=16" in plan["query_stream"]


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_folder_that_holds_something_is_refused_before_anything_is_loaded(palindiff, tmp_path, options):
    (tmp_path / "notes.txt").write_text("mine")
    code, out, err = palindiff("init", "--from", "no/base", "--text", "no/clip", "--output", tmp_path, *options)
    assert (code, out) == (2, "")
    assert f"`{tmp_path}` exists and is not empty. Expected a new or empty folder." in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(init, root, tmp_path):
    broken = with_hole(shutil.copytree(root / "sd1", tmp_path / "broken"))
    output = tmp_path / "out" / "start"
    code, out, err = init("--from", broken, output=output)  # the last --from holds
    assert (code, out) == (2, "")
    assert "palindiff: The part `unet` lacks `conv_in.bias`" in err
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--recipe", "diffdis-cc4m"), "diffdis-cc3m"),
        (("--set", "query_stream.gama=1"), "gama"),
        (("--set", "query_stream.gamma=2"), "query_stream.gamma"),
    ],
)
def test_an_unknown_recipe_or_key_is_refused(init, tmp_path, options, named):
    code, _, err = init(*options)
    assert code == 2
    assert named in err
    assert not list(tmp_path.iterdir())


def test_base_clip_and_output_are_required(palindiff):
    for options in ((), ("--from", "a", "--text", "b"), ("--from", "a", "--output", "c")):
        code, _, err = palindiff("init", *options)
        assert code == 2
        assert "Missing option" in err
