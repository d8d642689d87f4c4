"""Rules of the package: light imports, file names and sizes, words, and what must not be installed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import palindiff

SOURCE = Path(palindiff.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "matplotlib",
    "numpy",
    "PIL",
    "pydantic",
    "rich",
}
FORBIDDEN = [
    "told", "journal", "placement", "skeleton", "made_from", "kept_arrays", "claim_output", "published_folder",
    "TextTail", "completed_tower", "WholeModel", "SharedPipeline", "ClipFace", "watchers", "naming_request",
    "told_option",
]  # fmt: skip
TEXT_FILES = sorted(
    path
    for path in (*SOURCE.rglob("*"), *(TESTS.parent / "docs").rglob("*.md"), TESTS.parent / "README.md")
    if path.suffix in {".py", ".yaml", ".md", ".html"}
)


def modules_after(statement):
    """Names of all modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('modules', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "statement",
    [
        "import palindiff",
        "import palindiff.cli.main",
        "import sys; sys.argv = ['palindiff', '--help']\n"
        "from palindiff.cli.main import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_help_loads_nothing_heavy(statement):
    """`--help` answers at once; importing diffusers alone takes seconds."""
    modules = modules_after(statement)
    assert "palindiff" in modules
    assert not modules & HEAVY


def test_help_of_a_verb_loads_nothing_heavy():
    """Typer itself imports pydantic for the options of a verb."""
    from palindiff.cli.main import app

    verbs = [command.name for command in app.registered_commands]
    calls = "\n".join(f"try: main_of('{verb}')\nexcept SystemExit: pass" for verb in verbs)
    statement = (
        "import sys\nfrom palindiff.cli.main import main\n"
        f"def main_of(verb):\n    sys.argv = ['palindiff', verb, '--help']\n    main()\n{calls}"
    )
    assert not modules_after(statement) & (HEAVY - {"pydantic"})


def test_a_worker_that_decodes_images_loads_neither_diffusers_nor_transformers():
    """Each worker of the latent cache is a fresh process."""
    modules = modules_after("import palindiff.training.features.views")
    assert "torch" in modules
    assert not modules & {"diffusers", "transformers", "accelerate"}


def test_files_name_a_concept():
    nameless = {"utils", "util", "common", "misc", "helpers", "helper"}
    assert FILES
    assert not [path for path in [*FILES, *TESTS.rglob("*.py")] if path.stem in nameless]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_file_is_one_concept_and_a_function_one_screen(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 60]


def test_torchvision_is_not_imported():
    """It has no CPU build for this torch; its failing import makes others fail."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in imported if name.split(".")[0] == "torchvision"], path


def test_recipes_images_and_types_travel_with_the_package():
    assert (SOURCE / "py.typed").exists()
    assert list((SOURCE / "training" / "recipes").glob("*.yaml"))
    assert list((SOURCE / "experiments" / "vendor_images").glob("*.png"))


def forbidden_word(word):
    """A pattern for a word alone or as a part of a snake_case or CamelCase name, not inside another word."""
    capital = word[0].upper() + word[1:]
    alone = rf"(?<![A-Za-z])(?i:{word})(?![a-z])"
    return re.compile(rf"{alone}|(?<=[a-z0-9]){capital}(?![a-z])")


@pytest.mark.parametrize(
    ("word", "text", "is_found"),
    [
        ("told", "unless told otherwise", True),
        ("told", "Told.", True),
        ("told", "told_option", True),
        ("told", "is_told", True),
        ("told", "class WhatIsTold:", True),
        ("told", "ToldOption", True),
        ("told", "untold", False),
        ("told", "retoldness", False),
        ("watchers", "birdwatchers", False),
        ("TextTail", "TextTail(nn.Module)", True),
        ("TextTail", "ClipTextTail", True),
        ("made_from", "made_from_base", True),
        ("made_from", "made from", False),
    ],
)
def test_a_forbidden_word_is_found_in_names_but_not_in_other_words(word, text, is_found):
    assert bool(forbidden_word(word).search(text)) is is_found


@pytest.mark.parametrize("word", FORBIDDEN)
def test_replaced_words_stay_out_of_source_and_docs(word):
    pattern = forbidden_word(word)
    lines = [
        f"{path.relative_to(TESTS.parent)}:{number}"
        for path in TEXT_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not lines


def test_replaced_words_stay_out_of_every_help():
    from palindiff.cli.main import app

    names = [[command.name] for command in app.registered_commands]
    names += [
        [group.name, each.name] for group in app.registered_groups for each in group.typer_instance.registered_commands
    ]
    texts = {" ".join(verb): CliRunner().invoke(app, [*verb, "--help"]).output for verb in ([], ["data"], *names)}
    assert all("Usage" in text for text in texts.values())
    found = [(verb, word) for verb, text in texts.items() for word in FORBIDDEN if forbidden_word(word).search(text)]
    assert not found
