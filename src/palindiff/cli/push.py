"""`palindiff push`: upload a checkpoint folder with its model card to the Hub."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.output_option import DryRunOption, print_plan


def push(
    model: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint folder, uploaded as it is.")],
    repo_id: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="Repository on the Hub, created if there is none.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Upload a checkpoint folder to the Hub.

    It goes up in one commit, with its model card. Read DIR/README.md first: it is published as it stands. Log in once
    with `hf auth login`.

    \b
    Examples:
      palindiff push --model runs/first/checkpoint --to me/first --dry-run
      palindiff push --model runs/first/checkpoint --to me/first --private
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    from palindiff.pretrained.layout import check_index
    from palindiff.pretrained.model_card import CardFacts, card_head, card_text, read_card
    from palindiff.pretrained.saving import files_to_push, push_folder

    _check_name(repo_id)
    check_index(model)
    if dry_run:
        files = [
            f"{path.relative_to(model).as_posix()}, {path.stat().st_size:,} bytes" for path in files_to_push(model)
        ]
        head = card_head(read_card(model) or card_text(CardFacts(name=repo_id))).splitlines()
        print_plan({"to": repo_id, "private": private, "files": files, "head of the card": head})
        return
    try:
        typer.echo(push_folder(model, repo_id, private=private or None))
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise OSError(
            f"The Hub did not take `{model}` as {repo_id}: {' '.join(str(error).split())} Expected a name that your "
            "token may write to, and a network. Log in with `hf auth login`, or check --to."
        ) from error


def _check_name(repo_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    with suppress(HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    raise ValueError(
        f"--to is {repo_id}. Expected OWNER/NAME as the Hub allows it: letters, digits, `-`, `_` and `.`. Pass such a "
        "name."
    )
