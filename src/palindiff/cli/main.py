"""The command `palindiff`: its verbs, and errors as one line.

Here: which verbs there are. Not here: what they do. Each has its own file, which imports heavy packages late.
"""

import io
import logging
import sys
from typing import Annotated

import typer

import palindiff
from palindiff.cli.adapt import adapt
from palindiff.cli.classify import classify
from palindiff.cli.data import app as data
from palindiff.cli.demo import demo
from palindiff.cli.embed import embed
from palindiff.cli.estimate import estimate
from palindiff.cli.evaluate import evaluate
from palindiff.cli.evaluate_vae import evaluate_vae
from palindiff.cli.export import export
from palindiff.cli.generate import generate
from palindiff.cli.init import init
from palindiff.cli.push import push
from palindiff.cli.rank import rank
from palindiff.cli.reproduce import reproduce
from palindiff.cli.train import train
from palindiff.cli.train_vae import train_vae

ABOUT = (
    "Train and use one diffusion network for text-to-image generation, zero-shot classification and image-text "
    "retrieval, or adapt a CLIP and a Stable Diffusion to your images."
)
KNOWN_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)  # with a message for users

app = typer.Typer(
    name="palindiff", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)
app.add_typer(data, name="data")
for verb in (
    train,
    train_vae,
    adapt,
    estimate,
    evaluate,
    evaluate_vae,
    init,
    generate,
    classify,
    rank,
    embed,
    demo,
    reproduce,
    export,
    push,
):
    app.command(verb.__name__.replace("_", "-"))(verb)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"palindiff {palindiff.__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that need no verb."""


def main(command: typer.Typer = app) -> None:
    """Run a command; a known error becomes its message on stderr and exit code 2, Ctrl-C exit code 130."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # if installed, it warns at every import on a CPU
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print file names that are not valid text, escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except KNOWN_ERRORS as error:
        print(f"palindiff: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
