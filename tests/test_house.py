"""The house: what imports cost, what files are called, and what must not be there."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

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
    """Why `--help` answers at once: diffusers alone takes seconds."""
    modules = modules_after(statement)
    assert "palindiff" in modules
    assert not modules & HEAVY


def test_help_of_a_verb_loads_nothing_heavy():
    """Typer itself asks pydantic about the options of a verb."""
    from palindiff.cli.main import app

    verbs = [command.name for command in app.registered_commands]
    calls = "\n".join(f"try: main_of('{verb}')\nexcept SystemExit: pass" for verb in verbs)
    statement = (
        "import sys\nfrom palindiff.cli.main import main\n"
        f"def main_of(verb):\n    sys.argv = ['palindiff', verb, '--help']\n    main()\n{calls}"
    )
    assert not modules_after(statement) & (HEAVY - {"pydantic"})


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


def test_torchvision_is_neither_imported_nor_installed():
    """It has no CPU build that fits; its failing import takes others down with it."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in imported if name.split(".")[0] == "torchvision"], path
    assert importlib.util.find_spec("torchvision") is None


def test_recipes_and_types_travel_with_the_package():
    assert (SOURCE / "py.typed").exists()
    assert list((SOURCE / "training" / "recipes").glob("*.yaml"))
