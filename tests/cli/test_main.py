"""main.py: the verbs, the version, and what becomes of an error."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import palindiff
from palindiff.cli.main import app, main

VERBS = [command.name for command in app.registered_commands]
VERBS += [f"{group.name} {command.name}" for group in app.registered_groups
          for command in group.typer_instance.registered_commands]  # fmt: skip


def test_help_names_every_verb_with_what_it_does():
    result = CliRunner().invoke(app, ["--help"])
    listed = dict(line.split(maxsplit=1) for line in result.output.split("Commands:\n")[1].splitlines())
    assert result.exit_code == 0
    assert {"data", "train", "train-vae", "generate", "classify", "rank", "demo"} <= set(listed)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_s_help_has_its_options_and_an_example(verb):
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert f"palindiff {verb}" in result.output.partition("xample")[2]


def test_version_is_the_package_s():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"palindiff {palindiff.__version__}\n")


def test_no_arguments_print_the_help():
    result = CliRunner().invoke(app, [])
    assert "Commands:" in result.output


def run_raising(error):
    """Run a command that raises, as every verb is run."""
    command = typer.Typer(pretty_exceptions_enable=False)

    @command.command()
    def fail() -> None:
        raise error

    return lambda: main(command)


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["palindiff"])


@pytest.mark.parametrize(
    "error", [ValueError, FileNotFoundError, FileExistsError, PermissionError, ModuleNotFoundError, FloatingPointError]
)
def test_a_known_error_is_one_line_and_exit_code_2(error, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_raising(error("`x` is 3. Expected 4."))()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "palindiff: `x` is 3. Expected 4.\n")


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AssertionError, TypeError])
def test_an_unknown_error_keeps_its_traceback(error):
    with pytest.raises(error, match="surprise"):
        run_raising(error("surprise"))()


def test_control_c_is_exit_code_130():
    with pytest.raises(SystemExit) as stopped:
        run_raising(KeyboardInterrupt())()
    assert stopped.value.code == 130


def test_an_unknown_verb_is_exit_code_2():
    result = CliRunner().invoke(app, ["pain"])
    assert result.exit_code == 2
    assert "No such command 'pain'" in result.output


def test_the_module_runs_as_the_command_does(tmp_path):
    """From a shell: one line on stderr, nothing on stdout, no traceback."""
    command = [sys.executable, "-m", "palindiff.cli.main", "data", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"palindiff: `{tmp_path}` has no images of the split `train`. Expected metadata.jsonl"
    )
    assert done.stderr.count("\n") == 1
