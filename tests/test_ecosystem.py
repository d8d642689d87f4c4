"""docs/ecosystem.md: its examples run, one after the other, and its commands parse."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from palindiff.cli.main import app
from toys.models import toy_images
from toys.saving import write_lora, write_stable_diffusion

PAGE = (Path(__file__).parents[1] / "docs" / "ecosystem.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    write_stable_diffusion(tmp_path)
    write_lora(tmp_path / "base", tmp_path / "lora")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "checkpoint").rename(tmp_path / "runs" / "first" / "checkpoint")
    monkeypatch.chdir(tmp_path)
    toy_images(1)[0].save("sketch.png")
    Image.fromarray(np.array([[255] * 8] * 4 + [[0] * 8] * 4, dtype=np.uint8)).save("mask.png")
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    names = {}
    for example in examples:
        exec(compile(example, "ecosystem.md", "exec"), names)
    generated = {
        name: np.asarray(Image.open(f"{name}.png")) for name in ("apple", "generated", "inpainted", "with_lora")
    }
    assert len({image.tobytes() for image in generated.values()}) == 4
    assert Path("runs/first/checkpoint/README.md").is_file()


@pytest.mark.parametrize("command", re.findall(r"^palindiff .+", PAGE, re.MULTILINE))
def test_each_command_parses(command):
    verb, *words = shlex.split(command)[1:]
    found = typer.main.get_command(app).commands[verb]
    assert found.make_context(verb, words).params
