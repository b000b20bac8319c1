"""Commands of `vau` that publish: the book, the hub, other tools' files."""

from typing import Annotated

import typer

from vau_lib.workspace import presets

commands = typer.Typer()


@commands.command()
def book(preset: Annotated[str, typer.Argument(metavar="PRESET", help="whose executed notebooks the pages show")] = "demo") -> None:
    """Build the course as pages from what a preset ran: notebooks, gallery, glossary, atlas, API (extra `book`)."""
    from vau_lib.publish import book as pages

    typer.echo(f"look at {presets.display_path(pages.write(preset))}")
