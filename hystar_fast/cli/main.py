"""The ``hystar-fast`` command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

import hystar_fast
from hystar_fast.cli import experiments_commands
from hystar_fast.cli.console import create_console
from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import (
    Adapter,
    Device,
    Folder,
    MovedBackbone,
    MovedWeights,
    Output,
    Set,
    backbone_changes,
    setting_changes,
    weights_of,
)
from hystar_fast.ops.status import info as op_info


class WholeHelp(TyperGroup):
    """A group whose help shows the whole first sentence of each command, which click would cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, self.commands[name].get_short_help_str(limit=1000)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


# without rich markup: its tables cut the names of options at 80 columns
app = typer.Typer(
    name="hystar-fast",
    cls=WholeHelp,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"hystar-fast {hystar_fast.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Style-adaptive image retrieval: sketches, drawings, thumbnails and words find pictures."""


@app.command()
@clear_errors()
def demo(
    output: Folder = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training order and of random initialisation.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Training steps of each method.")] = 120,
    weights: Annotated[str, typer.Option(help="Weights of the backbone: packaged, random, or a file.")] = "packaged",
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use at most so many concepts of each split, to try things out.")
    ] = None,
) -> None:
    """Train on the embedded drawings, compare with the baselines on held-out concepts, and write the results."""
    from hystar_fast.cli.demo import DemoSettings, run_demo

    run_demo(DemoSettings(output, seed, steps, pretrained=weights_of(weights), limit=limit), create_console())


@app.command()
@clear_errors()
def search(
    query: Annotated[Path | None, typer.Option(help="A picture: a sketch, a drawing, a thumbnail.")] = None,
    text: Annotated[str | None, typer.Option(help="A text query, instead of a picture.")] = None,
    index: Annotated[Path, typer.Option("--index", "--demo", help="A folder that demo or embed wrote.")] = Path(
        "runs/demo"
    ),
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 5,
    picture: Annotated[Path | None, typer.Option(help="Also draw the query and its results into this PNG.")] = None,
) -> None:
    """Find pictures for a picture or words in a gallery that demo or embed indexed."""
    if (query is None) == (text is None):
        raise ValueError(
            f"exactly one of --query and --text must be given, got {'neither' if text is None else 'both'}"
        )
    if query is not None and not query.is_file():
        raise ValueError(f"--query must be an image file, but {query} does not exist or is not a file")
    from hystar_fast.index.search import Searcher

    searcher = Searcher.open(index)
    hits = searcher.search_image(query, top) if query is not None else searcher.search_text(text or "", top)
    shown = str(query) if query is not None else f"“{text}”"
    table = Table(title=f"{shown}: first {len(hits)} of {len(searcher.index)}", title_justify="left")
    for heading, side in (("", "right"), ("cosine", "right"), ("id", "left"), ("caption", "left")):
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.id, hit.caption)
    create_console().print(table)
    if picture is not None:
        searcher.draw(hits, query=query, text=text or "").save(picture)
        create_console().print(f"wrote {picture}")


@app.command()
@clear_errors()
def info() -> None:
    """Show which implementation of each op runs here, and why a faster one does not."""
    table = Table(title=f"hystar-fast {hystar_fast.__version__}", title_justify="left")
    rows = op_info()
    for heading in ("op", "device", "implementation", "why not a faster one"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row["op"], row["device"], row["implementation"], row["reason"] or "–")
    create_console().print(table)


@app.command()
@clear_errors()
def train(
    config: Annotated[
        str, typer.Argument(help="A TOML file, or shipped settings: emoji (the embedded drawings) or paper.")
    ] = "emoji",
    set_: Set = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the folder.")] = False,
) -> None:
    """Train Hystar or another method; writes an adapter, a checkpoint and a log (docs/training.md)."""
    from hystar_fast.cli.train_command import train_from

    # under torchrun only the first process prints
    console = create_console(quiet=os.environ.get("RANK", "0") != "0")
    train_from(config, setting_changes(set_, output), console, resume=resume)


@app.command("eval")
@clear_errors()
def evaluate(
    adapter: Adapter = Path("runs/demo/adapter"),
    method: Annotated[
        str | None, typer.Option(help="A method without training instead of an adapter: pixels, hog or frozen.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="emoji, or dsr:, domainnet:, folders:, pairs:, captions:, shards: or icons:<path>, or a path whose "
            "layout is recognised."
        ),
    ] = "emoji",
    split: Annotated[
        str, typer.Option(help="val or test; folders, pairs and shards have no splits and are used as a whole.")
    ] = "test",
    task: Annotated[
        str | None, typer.Option(help="instance, category or classify; by default instance if the data has instances.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="full, or batch24: the published one, in batches of 24 instead of the gallery.")
    ] = "full",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="R@k, mAP@all, mAP@k:positives|capped|found, each also :interpolated, "
            "Prec@k:k|gallery|positives; separated by commas. By default R@1,R@5; batch24 has its own."
        ),
    ] = None,
    gallery_style: Annotated[
        str | None, typer.Option(help="The style of the gallery of folders, shards and icons.")
    ] = None,
    categories: Annotated[Path | None, typer.Option(help="File of the categories to keep, one a line.")] = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    output: Folder = Path("runs/eval"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many pictures of each style.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate an adapter or a method on a data set, over the full gallery, with 95 % intervals."""
    from hystar_fast.cli.eval_command import EvalSettings, run_evaluation

    settings = EvalSettings(
        output=output,
        adapter=adapter,
        method=method,
        backbone=backbone,
        weights=weights,
        data=data,
        split=split,
        task=task,
        protocol=protocol,
        metrics=metrics,
        gallery_style=gallery_style,
        categories=categories,
        limit=limit,
        device=device,
    )
    run_evaluation(settings, create_console())


@app.command()
@clear_errors()
def embed(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, searched recursively.")],
    adapter: Adapter = Path("runs/demo/adapter"),
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    output: Folder = Path("runs/index"),
    device: Device = "auto",
) -> None:
    """Index a folder of pictures, for search --index."""
    from hystar_fast.index.search import index_folder

    start = time.perf_counter()
    console = create_console()
    changes = backbone_changes(backbone, weights)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("embed", total=None)  # a description is markup: no name belongs in it
        count, skipped = index_folder(
            folder,
            adapter,
            output,
            device=device,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            **changes,
        )
    if skipped:
        first = f"{skipped[0].path}: {skipped[0].reason}"
        line = f"skipped {len(skipped)} of {count + len(skipped)} pictures, the first: {first}"
        console.print(line)
    console.print(f"indexed {count} pictures in {time.perf_counter() - start:.1f} s: {output}")


app.add_typer(experiments_commands.app, cls=WholeHelp)


if __name__ == "__main__":
    app()
