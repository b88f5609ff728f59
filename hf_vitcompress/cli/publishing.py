"""`vitcompress push`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Quiet, silence_libraries


def push_checkpoint(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder made by compress.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Hub id: name, or organization/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of a new repository; else the account's.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; made if there is none of that name.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    token: Annotated[
        str | None, typer.Option(help="Access token; by default HF_TOKEN or that of `hf auth login`.")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    commit_description: Annotated[str | None, typer.Option(help="Text of the commit.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Split the weights into files of this size: 5GB.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Further tag for the card; may be repeated.")] = None,
    quiet: Quiet = False,
) -> None:
    """Publish OUT on the Hub: weights, image processor, recipe, plan, figures and model card, in one commit.

    A card that somebody edited on the Hub keeps what they wrote.

    Example: vitcompress push deit-40 me/deit-base-40 --private
    """
    from ..publish.push import push_folder

    if quiet:
        silence_libraries()
    done = push_folder(
        folder,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        token=token,
        commit_message=commit_message,
        commit_description=commit_description,
        max_shard_size=max_shard_size,
        tags=tags,
    )
    print(f"published: {done.pr_url or done.commit_url}")
