"""model_card.py: a head that the Hub reads, facts for people, and nothing that nobody knows."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from pydantic import ValidationError

from palindiff.evaluation.results import read_results, write_results
from palindiff.pretrained.bundled import BUNDLED_LICENSE, bundled_folder
from palindiff.pretrained.model_card import (
    UNKNOWN_LICENSE,
    BaseWeights,
    CardFacts,
    License,
    card_head,
    card_text,
    public_name,
    read_base_license,
    read_card,
    stable_diffusion_card,
    write_card,
)
from toys.models import toy_images
from toys.saving import write_stable_diffusion

RAIL = License(license="creativeml-openrail-m")
MINE = License(license="other", license_name="mine", license_link="https://example.org/licence")
BASE = BaseWeights(name="somebody/stable-diffusion", part="U-Net and VAE", license=RAIL)
TEXT_ENCODER = BaseWeights(name="clip-on-disk", part="Text encoder")


def head_of(facts):
    return yaml.safe_load(card_head(card_text(facts)))


def section(card, heading):
    return re.search(rf"^## {heading}\n\n(.*?)(?=\n\n## |\Z)", card, re.MULTILINE | re.DOTALL)[1].strip()


def test_the_head_tells_the_hub_what_it_is_and_where_it_comes_from():
    facts = CardFacts(
        name="me/mine",
        bases=(BASE, TEXT_ENCODER),
        datasets=("somebody/images", "emoji"),
        language=("en",),
        license=MINE,
    )
    assert head_of(facts) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["palindiff", "diffdis", "zero-shot-image-classification", "image-text-retrieval"],
        "base_model": ["somebody/stable-diffusion"],  # the Hub refuses names that are not on it
        "datasets": ["somebody/images"],
        "language": ["en"],
        "license": "other",
        "license_name": "mine",
        "license_link": "https://example.org/licence",
    }
    assert ModelCard(card_text(facts)).data.base_model == ["somebody/stable-diffusion"]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, UNKNOWN_LICENSE),
        ({"bases": (TEXT_ENCODER,)}, UNKNOWN_LICENSE),
        ({"bases": (BASE,)}, RAIL),
        ({"bases": (BASE, BASE)}, RAIL),
        ({"bases": (BASE, TEXT_ENCODER)}, UNKNOWN_LICENSE),  # the folder holds both
        ({"bases": (BASE, TEXT_ENCODER), "license": MINE}, MINE),
    ],
)
def test_a_licence_is_given_or_all_bases_have_it_or_it_is_unknown(facts, told):
    head = head_of(CardFacts(name="mine", **facts))
    assert {name: head[name] for name in head if "license" in name} == told.model_dump(exclude_none=True)


def test_the_body_tells_each_fact_and_says_what_is_not_known():
    card = card_text(CardFacts(name="mine", bases=(BASE, TEXT_ENCODER), datasets=("emoji",), training={"steps": 8000}))
    assert section(card, "Training data") == "- `emoji`"
    assert section(card, "Training") == "- steps: 8000"
    assert section(card, "Results") == "Not measured."
    assert section(card, "Licence").splitlines() == [
        "- These weights: unknown.",
        "- U-Net and VAE, from `somebody/stable-diffusion`: creativeml-openrail-m.",
        "- Text encoder, from `clip-on-disk`: unknown; see their source.",
    ]
    empty = card_text(CardFacts(name="mine"))
    assert (section(empty, "Training data"), section(empty, "Training")) == ("Not stated.", "Not stated.")


def test_rows_of_a_result_file_become_a_table(tmp_path):
    rows = [{"style": "flat", "recall": 0.34516129, "n": 310}, {"style": "a|b", "recall": None, "split": "test"}]
    write_results(tmp_path / "demo.json", rows, "palindiff demo", {}, 0, 1.0)
    results = read_results(tmp_path / "demo.json")
    facts = CardFacts(name="mine", results=results.rows, measured_by=results.command, parameters={"U-Net": 10_000_000})
    card = card_text(facts)
    assert section(card, "Results").splitlines() == [
        "| style | recall | n | split |",
        "| --- | --- | --- | --- |",
        "| flat | 0.3452 | 310 | – |",
        "| a\\|b | – | – | test |",
        "",
        "Measured by `palindiff demo`.",
    ]
    assert "Parameters: U-Net 10,000,000." in card


@pytest.mark.parametrize("name", ["/home/somebody/mine", "../mine", "~/mine", "runs/first/checkpoint", "C:\\mine"])
def test_no_path_is_published(name):
    with pytest.raises(ValidationError, match="no path: cards are published"):
        CardFacts(name="mine", datasets=(name,))
    assert "/" not in public_name("/somewhere/" + name.replace("\\", "/"))


def test_a_hub_name_is_public_unless_a_folder_here_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name("somebody/images") == "somebody/images"
    (tmp_path / "somebody" / "images").mkdir(parents=True)
    assert public_name("somebody/images") == "images"
    assert public_name(".") == tmp_path.name


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# SD\n", RAIL),
        ("---\r\nlicense: other\r\nlicense_name: mine\r\nlicense_link: https://example.org/licence\r\n---\r\n", MINE),
        ("---\ntags: [x]\n---\nlicense: mit\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: 'mit\n---\n", None),
        ("license: mit\n", None),
        ("\xff", None),
    ],
)
def test_the_licence_of_base_weights_is_what_their_own_card_says(card, told, tmp_path):
    (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert read_base_license(tmp_path) == told
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    (tmp_path / "vae").mkdir()
    assert read_base_license(tmp_path / "vae") == told
    assert read_base_license(tmp_path / "missing" / "vae") is None


def test_bundled_weights_have_the_licence_of_their_card():
    assert read_base_license(bundled_folder("emoji")) == License(license=BUNDLED_LICENSE)


def test_a_card_of_generation_alone_keeps_all_but_our_tags():
    card = card_text(CardFacts(name="mine", bases=(BASE,)))
    generation = stable_diffusion_card(card)
    head, before = yaml.safe_load(card_head(generation)), yaml.safe_load(card_head(card))
    assert head == before | {"tags": []}
    assert generation.partition("exported from.\n")[2].strip() == card.partition("\n---\n")[2].strip()
    assert stable_diffusion_card("no head").endswith("\n\nno head")


def test_the_examples_of_a_card_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stable_diffusion(tmp_path)
    toy_images(1)[0].save("apple.png")
    path = write_card(tmp_path / "checkpoint", CardFacts(name="mine"))
    assert path.read_text(encoding="utf-8") == read_card(tmp_path / "checkpoint")
    examples = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example.replace("path/to/this/folder", "checkpoint"), {})
    assert Path("apple.png").stat().st_size > 0
    assert 'from_pretrained("me/mine")' in card_text(CardFacts(name="me/mine"))
