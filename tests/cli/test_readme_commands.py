"""README.md: each command in it is one, how the command is installed, and the settings and licence that it tells."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from palindiff.cli.main import app
from palindiff.experiments import emoji_protocol

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = [*re.findall(r"^palindiff .+", README, re.MULTILINE), *re.findall(r"`(palindiff .+?)`", README)]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_understood(command):
    verb, words = typer.main.get_command(app), shlex.split(command, comments=True)[1:]
    while hasattr(verb, "commands"):
        verb, words = verb.commands[words[0]], words[1:]
    assert verb.make_context(verb.name, words).params


def test_installation_is_the_makefile_s():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^\. (\S+)/activate$", README, re.MULTILINE)
    assert f"BIN = {folder}\n" in makefile
    constraints, extra = re.search(r"`pip install -c (\S+) -e '\.\[(\w+)\]'`", README).groups()
    assert (ROOT / constraints).is_file()
    assert extra in PROJECT["optional-dependencies"]


def test_settings_of_the_results_are_the_protocol_s():
    naming, generation = emoji_protocol.NAMING_GUIDANCE_SCALE, emoji_protocol.GENERATION_GUIDANCE_SCALE
    assert f"at guidance scale {naming:g}, which is none, with {emoji_protocol.NAMING_STEPS} DDIM steps" in WORDS
    assert (
        f"{emoji_protocol.NUM_GENERATED} captions are generated at guidance scale {generation:g} with "
        f"{emoji_protocol.GENERATION_STEPS} DDIM steps, and the style's real images of "
        f"{emoji_protocol.NUM_GENERATION_CONCEPTS} concepts" in WORDS
    )


def test_licences_of_code_and_weights_are_told_alike():
    card = (ROOT / "src/palindiff/checkpoints/emoji/README.md").read_text(encoding="utf-8")
    weights = yaml.safe_load(card.split("---")[1])["license"]
    code = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"]
    assert PROJECT["license"].lower() == f"{code} and {weights}".lower()
    assert f"The code: {code}" in README
    assert (
        f"The weights that ship (`src/palindiff/checkpoints`): {weights.upper().replace('CC-BY-SA-', 'CC BY-SA ')}"
        in README
    )
