"""README.md: its commands parse, and its installation, settings and licences are those of the project."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from palindiff.cli.main import app
from palindiff.experiments import emoji_protocol, naming_protocol

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())
RESULTS = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = [*re.findall(r"^palindiff .+", README, re.MULTILINE), *re.findall(r"`(palindiff .+?)`", README)]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_parses(command):
    verb, words = typer.main.get_command(app), shlex.split(command, comments=True)[1:]
    while hasattr(verb, "commands"):
        verb, words = verb.commands[words[0]], words[1:]
    assert verb.make_context(verb.name, words).params


def test_installation_is_the_makefile_s():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^\. (\S+)/activate$", README, re.MULTILINE)
    assert f"BIN = {folder}\n" in makefile
    constraints, extras = re.search(r"`pip install -c (\S+) -e '\.\[([\w,]+)\]'`", README).groups()
    assert (ROOT / constraints).is_file()
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert f"--editable '.[{extras}]'" in makefile


def test_settings_of_the_results_are_the_protocol_s():
    naming, generation = naming_protocol.NAMING_GUIDANCE_SCALE, emoji_protocol.GENERATION_GUIDANCE_SCALE
    retrieval = f"at guidance scale {naming:g} (no guidance) with {naming_protocol.NAMING_STEPS} DDIM steps"
    generated = (
        f"{emoji_protocol.NUM_GENERATED} captions are generated at guidance scale {generation:g} with "
        f"{emoji_protocol.METRIC_STEPS} DDIM steps."
    )
    concepts = f"the real images of {emoji_protocol.NUM_GENERATION_CONCEPTS} concepts"
    for words in (WORDS, RESULTS):
        assert retrieval in words
        assert generated in words
        assert concepts.lower() in words.lower()


def test_licences_of_code_and_weights_agree():
    card = (ROOT / "src/palindiff/checkpoints/emoji/README.md").read_text(encoding="utf-8")
    weights = yaml.safe_load(card.split("---")[1])["license"]
    code = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"]
    vendor = "CC-BY-4.0"  # of the bundled images of an unseen vendor
    assert PROJECT["license"].lower() == f"{code} and {weights} and {vendor}".lower()
    assert f"The code: {code}" in README
    assert (
        f"The bundled weights (`src/palindiff/checkpoints`): {weights.upper().replace('CC-BY-SA-', 'CC BY-SA ')}"
        in README
    )
