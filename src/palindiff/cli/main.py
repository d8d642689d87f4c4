"""The command `palindiff`: its verbs, and errors as one clear line.

Here: which verbs there are. Not here: what they do; each lives in the file of its name and imports late.
"""

import io
import logging
import sys
from typing import Annotated

import typer

import palindiff
from palindiff.cli.classify import classify
from palindiff.cli.data import app as data
from palindiff.cli.demo import demo
from palindiff.cli.estimate import estimate
from palindiff.cli.evaluate_vae import evaluate_vae
from palindiff.cli.export import export
from palindiff.cli.generate import generate
from palindiff.cli.init import init
from palindiff.cli.push import push
from palindiff.cli.rank import rank
from palindiff.cli.train import train
from palindiff.cli.train_vae import train_vae

KNOWN_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)  # ours say what to do

app = typer.Typer(
    name="palindiff",
    help="One diffusion network that generates from words, and names and finds images.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data, name="data")
app.command("train")(train)
app.command("train-vae")(train_vae)
app.command("estimate")(estimate)
app.command("evaluate-vae")(evaluate_vae)
for verb in (init, generate, classify, rank, demo, export, push):
    app.command(verb.__name__)(verb)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"palindiff {palindiff.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """One diffusion network that generates from words, and names and finds images."""


def main(command: typer.Typer = app) -> None:
    """Run a command; a known error becomes its message on stderr and exit code 2, Ctrl-C exit code 130."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # where installed, it warns at every import on a CPU
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text: better escaped than an error
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except KNOWN_ERRORS as error:
        print(f"palindiff: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
