"""Commands of `vau` that publish: the book, the hub, other tools' files."""

from pathlib import Path
from typing import Annotated

import typer

from vau_lib.workspace import artifacts, presets

commands = typer.Typer()


@commands.command()
def book(preset: Annotated[str, typer.Argument(metavar="PRESET", help="whose executed notebooks the pages show")] = "demo") -> None:
    """Build the course as pages from what a preset ran: notebooks, gallery, glossary, atlas, API (extra `book`)."""
    from vau_lib.publish import book as pages

    typer.echo(f"look at {presets.display_path(pages.write(preset))}")


@commands.command()
def badges(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="a public clone of this project on GitHub")],
    branch: Annotated[str, typer.Option(help="its branch")] = "main",
) -> None:
    """Write badges for Colab and Kaggle, and the cell that sets such a machine up, into the notebooks."""
    from vau_lib.publish import badges as links

    changed = links.write(repository, branch)
    typer.echo(f"{len(changed)} of {len(presets.notebooks())} notebooks changed: look at git diff, commit and push")


@commands.command("export-labels")
def export_labels(
    source: Annotated[Path, typer.Argument(help="a records.jsonl, or a review sheet (csv)")],
    target: Annotated[Path, typer.Argument(help="the JSON file to write")],
    to: Annotated[str, typer.Option(help="fiftyone (records) or label-studio (a review sheet)")],
    videos: Annotated[str, typer.Option(help="label-studio: address or prefix that the videos are served from")] = "",
) -> None:
    """Write records for FiftyOne, or a review sheet for Label Studio with its labelling configuration (.xml) beside it."""
    from vau_lib.data import annotation, records
    from vau_lib.publish import exchange

    if to == "fiftyone":
        content = exchange.to_fiftyone(records.read_records(source))
        count = f"{len(content['labels'])} videos"
    elif to == "label-studio":
        content = exchange.to_label_studio(annotation.read_review(source), videos=videos)
        with artifacts.replacing(target.with_suffix(".xml")) as temporary:
            temporary.write_text(exchange.LABEL_CONFIG, encoding="utf-8")
        count = f"{len(content)} tasks, configuration {target.with_suffix('.xml').name}"
    else:
        raise ValueError(f"--to must be fiftyone or label-studio, got {to!r}")
    artifacts.write_json(target, content)
    typer.echo(f"{target}: {count}")


@commands.command("import-review")
def import_review(
    source: Annotated[Path, typer.Argument(help="a JSON export of Label Studio")],
    target: Annotated[Path, typer.Argument(help="the csv to write; notebook 08 reads it as review_file")],
) -> None:
    """Turn what people decided in Label Studio into a review sheet."""
    from vau_lib.data import annotation
    from vau_lib.publish import exchange

    table = exchange.from_label_studio(source)
    annotation.write_review(target, table)
    counts = table["decision"].replace("", "undecided").value_counts()
    typer.echo(f"{target}: {', '.join(f'{count} {decision}' for decision, count in counts.items())}")


@commands.command()
def push(
    folder: Annotated[Path, typer.Argument(help="of one model or one feature set, with its made_by.json")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the hub; nothing is sent without it")],
    public: Annotated[bool, typer.Option("--public", help="for everyone to see; private if not given")] = False,
    note: Annotated[str, typer.Option(help="a paragraph of yours for the card")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the files and the card, send nothing")] = False,
) -> None:
    """Upload a trained model or a feature set to the Hugging Face hub, with a card; log in by `hf auth login` before."""
    from vau_lib.publish import hub

    folder = presets.project_path(folder)
    if dry_run:
        typer.echo(hub.card(folder, repo, note=note) + "\n" + "\n".join(hub.files(folder)))
        return
    typer.echo(hub.push(folder, repo, private=not public, note=note))


@commands.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="what `vau push` made")],
    to: Annotated[str, typer.Option(help="folder; data/models/hub/OWNER/NAME (or data/features/hub/...) if not given")] = "",
    kind: Annotated[str, typer.Option(help="model or features")] = "model",
    revision: Annotated[str | None, typer.Option(help="a branch, tag or commit")] = None,
) -> None:
    """Download a model or a feature set of `vau push`; only files that cannot run code are taken."""
    from vau_lib.publish import hub

    folder = "features" if kind == "features" else "models"
    place = hub.pull(repo, presets.project_path(to or f"data/{folder}/hub/{repo}"), kind=kind, revision=revision)
    typer.echo(f"{repo} is at {presets.display_path(place)}")
