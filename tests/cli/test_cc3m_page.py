"""docs/cc3m.md: its commands at toy size, on a folder as img2dataset leaves it; its table of recipes and its sums."""

import re
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import typer
from PIL import Image

from palindiff.cli.main import app
from palindiff.training.features.latent_cache import PART_ROWS
from palindiff.training.recipes import yaml_files
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe, recipe_names
from toys.cc3m import write_downloads
from toys.run import one_thread
from toys.stable_diffusion import IMAGE_PX, write_clip_of, write_sd1

PAGE = (Path(__file__).parents[2] / "docs" / "cc3m.md").read_text(encoding="utf-8")
LAUNCH = re.compile(r"^torchrun --nproc_per_node \d+ -m palindiff\.cli\.main ")
COMMANDS = [
    LAUNCH.sub("palindiff ", line)
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("palindiff") or LAUNCH.match(line)
]
VERBS = typer.main.get_command(app).commands
STREAM = {"num_head_layers": 1, "head_width": 16, "head_dim": 8}
TOY = {
    "base.image_size_px": IMAGE_PX, "loop.num_steps": 2, "loop.batch_size": 4, "loop.accumulation": 1,
    "optimizer.warmup_steps": 1, "evaluation.num_images": 4, "evaluation.num_inference_steps": 2,
    "evaluation.prompts": "[a dog]", "machine.precision": "fp32", "machine.num_workers": 0,
    **{f"query_stream.{key}": of for key, of in STREAM.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folders that the page's commands name."""
    root = tmp_path_factory.mktemp("cc3m_page")
    shutil.copytree(write_clip_of(root), root / "clip-vit-large-patch14")
    write_sd1(root, "stable-diffusion-v1-1")
    write_downloads(root / "cc3m" / "train", 3, faults=("damaged", "empty"), is_killed=True)
    write_downloads(root / "cc3m" / "validation", 1)
    return root


@pytest.fixture
def run(workplace, palindiff, monkeypatch):
    """Run a command of the page where its folders lie -> stdout, stderr."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workplace / "datasets")

    def run(command, **settings):
        words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        arguments = [*shlex.split(command)[1:], *(word for each in words for word in ("--set", each))]
        with one_thread():
            code, out, err = palindiff(*arguments)
        assert code == 0, err
        return out, err

    return run


def of_verb(*words):
    found = [command for command in COMMANDS if command.split()[1 : 1 + len(words)] == list(words)]
    assert found
    return found


def test_data_show_counts_rows_from_the_list_to_the_usable_pairs(run):
    out, _ = run(of_verb("data", "show")[0])
    assert dict(re.findall(r"^│ +(.+?) +│ +([\d,]+) +│$", out, re.MULTILINE)) == {
        "shards": "3", "of them without a report: not finished": "1", "rows listed, in shards with a report": "16",
        "failed to download": "2", "HTTP Error 404: Not Found": "2", "downloaded": "14",
        "left out: empty caption": "1", "left out: archive cannot be read": "1", "usable pairs": "17",
    }  # fmt: skip
    assert "6 epochs at batch 256: --set loop.num_steps=1 " in out
    asked, _ = run(f"{of_verb('data', 'show')[0]} --epochs 3 --batch-size 4")
    assert "3 epochs at batch 4: --set loop.num_steps=13 --set loop.batch_size=4" in asked


@pytest.mark.parametrize("launched", of_verb("train")[1:])
def test_the_training_commands_train_and_report_what_was_left_out(launched, run, workplace):
    command, output = re.sub(r"--output \S+", "--output runs/cc3m", launched), workplace / "runs" / "cc3m"
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(workplace / "cache", ignore_errors=True)
    _, err = run(command, **TOY)
    assert "were left out: " in err
    assert all(reason in err for reason in ("empty caption (1)", "archive cannot be read (1)", "damaged image (1)"))
    assert "Used: 16 of 16" in err
    described = set(
        re.findall(r"^\| `(\w+(?:\.\w+)?/?)`", PAGE.partition("below `runs/cc3m`")[2].partition("##")[0], re.MULTILINE)
    )
    assert {name.rstrip("/") for name in described} | {"tensorboard"} == {path.name for path in output.iterdir()}
    arrays = [np.load(file) for file in sorted((workplace / "cache").glob("images-*/moments.npy"))]
    assert sorted(len(array) for array in arrays) == [4, 17], "four validation images are looked at"
    side = IMAGE_PX // 8
    assert {array.nbytes // len(array) for array in arrays} == {2 * 4 * side * side * 2}


def test_the_result_classifies_and_generates(run, workplace):
    if not (workplace / "runs" / "cc3m" / "checkpoint").exists():
        run(of_verb("train")[1], **TOY)
    Image.new("RGB", (80, 60), "red").save(workplace / "photo.jpg")
    named, _ = run(of_verb("classify")[0])
    assert all(label in named for label in ("dog", "cat", "bus"))
    run(f"{of_verb('generate')[0]} --output generated --steps 2")
    assert Image.open(next((workplace / "generated").glob("*.png"))).size == (IMAGE_PX, IMAGE_PX)


def test_the_other_commands_do_what_they_say(run, workplace):
    run(of_verb("data", "show")[1])
    stream = {key: value for key, value in TOY.items() if key.startswith("query_stream")}
    run(of_verb("init")[0], **stream)
    assert (workplace / "start" / "query_stream" / "config.json").is_file()
    out, _ = run(of_verb("train")[0], **TOY)
    assert "trained: " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_parses(command):
    verb, words = typer.main.get_command(app), shlex.split(command)[1:]
    if words[0] not in VERBS:
        pytest.skip(f"no verb `{words[0]}` here")
    while hasattr(verb, "commands"):
        verb, words = verb.commands[words[0]], words[1:]
    assert verb.make_context(verb.name, words).params


def test_each_recipe_of_cc3m_has_its_row_and_says_that_table():
    rows = re.findall(r"^\| (Tables? [^|]+|none[^|]*) \| [^|]+ \| `(\S+)` \|$", PAGE, re.MULTILINE)
    assert {recipe for _, recipe in rows} == {name for name in recipe_names() if name.startswith("diffdis-cc3m")}
    folder = Path(yaml_files.__file__).parent
    for table, recipe in rows:
        if recipe != "diffdis-cc3m" and table.startswith("Table"):
            assert re.search(rf"{table}[,.]", (folder / f"{recipe}.yaml").read_text(encoding="utf-8"))


def test_sums_of_the_page_are_right():
    assert f"parts of {PART_ROWS:,} images" in PAGE
    recipe = load_recipe(DiffDisRecipe, "diffdis-cc3m")
    side, num_images = recipe.base.image_size_px // 8, int(re.search(r"--images (\d+)", PAGE)[1])
    a_image = 2 * 4 * side * side * 2
    assert recipe.views.flip == "none"
    assert f"= {a_image:,} |" in PAGE
    assert f"latents of {num_images:,} images | {num_images * a_image / 1e9:.1f} GB |" in PAGE
    steps = {int(found) for found in re.findall(r"loop\.num_steps=(\d+)", PAGE)}
    assert steps == {round(6 * num_images / recipe.loop.batch_size)}
