"""The ``hystar-fast`` command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import hystar_fast
from hystar_fast.cli import comparing
from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import (
    BackboneNow,
    Device,
    Folder,
    GalleryStyle,
    Limit,
    ProtocolName,
    Seed,
    Weights,
    WeightsNow,
    moved,
    pretrained,
)
from hystar_fast.ops.status import info as op_info


class WholeHelp(TyperGroup):
    """Lists the commands with whole sentences, where click cuts them to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, self.commands[name].get_short_help_str(limit=1000)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


# no rich markup: in its tables the names of options are cut at 80 columns
app = typer.Typer(
    name="hystar-fast",
    cls=WholeHelp,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
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
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Training steps of each method; by default as tuned.")
    ] = None,
    weights: Weights = "packaged",
    limit: Limit = None,
) -> None:
    """Train on the embedded drawings, compare with the baselines on held-out concepts, and keep the results."""
    from hystar_fast.cli.demo import DemoSettings, run_demo
    from hystar_fast.methods.recipes import DEMO_STEPS

    chosen = DEMO_STEPS if steps is None else steps
    run_demo(DemoSettings(output, seed, chosen, pretrained=pretrained(weights), limit=limit), Console())


@app.command()
@clear_errors()
def search(
    query: Annotated[Path | None, typer.Option(help="A picture: a sketch, a drawing, a thumbnail.")] = None,
    text: Annotated[str | None, typer.Option(help="Words, instead of a picture.")] = None,
    demo: Annotated[Path, typer.Option("--demo", "--index", help="What demo or embed wrote.")] = Path("runs/demo"),
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 5,
    picture: Annotated[Path | None, typer.Option(help="Also draw query and answers into this PNG.")] = None,
) -> None:
    """Answer a picture or words from the gallery that demo or embed indexed."""
    if (query is None) == (text is None):
        raise ValueError("give exactly one of --query and --text")
    if query is not None and not query.is_file():
        raise ValueError(f"--query must be an image file, but {query} does not exist or is not a file")
    from hystar_fast.cli.search import Searcher

    searcher = Searcher.open(demo)
    hits = searcher.image(query, top) if query is not None else searcher.text(text or "", top)
    asked = str(query) if query is not None else f"“{text}”"
    table = Table(title=f"{asked}: first {len(hits)} of {len(searcher.index)}", title_justify="left")
    for heading, side in (("", "right"), ("cosine", "right"), ("id", "left"), ("what", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for hit in hits:
        table.add_row(str(hit.place), f"{hit.score:.3f}", hit.id, hit.caption)
    Console().print(table)
    if picture is not None:
        searcher.picture(hits, query=query, words=text or "").save(picture)
        Console().print(f"wrote {picture}")


@app.command()
@clear_errors()
def info() -> None:
    """Say which implementation of each op runs here, and why a faster one does not."""
    table = Table(title=f"hystar-fast {hystar_fast.__version__}", title_justify="left")
    rows = op_info()
    for heading in ("op", "device", "implementation", "why not a faster one"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row["op"], row["device"], row["implementation"], row["reason"] or "–")
    Console().print(table)


@app.command()
@clear_errors()
def train(
    config: Annotated[
        str, typer.Argument(help="A TOML file, or settings that are shipped: emoji (the embedded drawings) or paper.")
    ] = "emoji",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: section.key=value. May be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for everything that is written (run.output).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
) -> None:
    """Train Hystar, or a method it is compared with; writes an adapter, a checkpoint and a log (docs/training.md)."""
    from hystar_fast.cli.train import train_from

    changes = [*(set_ or ()), *(() if output is None else (f"run.output={output}",))]
    # of the processes torchrun starts, the first one speaks
    train_from(config, changes, Console(quiet=os.environ.get("RANK", "0") != "0"), resume=resume)


@app.command("eval")
@clear_errors()
def evaluate(
    adapter: Annotated[Path, typer.Option(help="An adapter that train or demo wrote.")] = Path("runs/demo/adapter"),
    method: Annotated[
        str | None, typer.Option(help="Instead of an adapter, a method without training: pixels, hog or frozen.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="emoji, or dsr:, domainnet:, folders:, pairs:, shards: or icons:<path>, or a path recognised by "
            "its layout."
        ),
    ] = "emoji",
    split: Annotated[
        str, typer.Option(help="val or test; of folders, pairs and shards, which have no splits, both are all.")
    ] = "test",
    task: Annotated[
        str | None, typer.Option(help="instance, category or classify; by default instance where the data has any.")
    ] = None,
    protocol: ProtocolName = "full",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="R@k, mAP@all, mAP@k:positives|capped|found, each also :interpolated, "
            "Prec@k:k|gallery|positives; by commas. By default R@1,R@5; batch24 has its own."
        ),
    ] = None,
    gallery_style: GalleryStyle = None,
    categories: Annotated[Path | None, typer.Option(help="File of the categories to keep, one a line.")] = None,
    backbone: BackboneNow = None,
    weights: WeightsNow = None,
    output: Folder = Path("runs/eval"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many pictures of each style.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate an adapter or a method on a data set, over the full gallery, with 95 % intervals."""
    from hystar_fast.cli.evaluate import EvalSettings, run_evaluation

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
    run_evaluation(settings, Console())


@app.command()
@clear_errors()
def embed(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, searched recursively.")],
    adapter: Annotated[Path, typer.Option(help="An adapter that train or demo wrote.")] = Path("runs/demo/adapter"),
    backbone: BackboneNow = None,
    weights: WeightsNow = None,
    output: Folder = Path("runs/index"),
    device: Device = "auto",
) -> None:
    """Index a folder of pictures, for search --index."""
    from hystar_fast.cli.search import embed_folder

    start = time.perf_counter()
    console = Console()
    count = embed_folder(folder, adapter, output, console, device, **moved(backbone, weights))
    console.print(f"indexed {count} pictures in {time.perf_counter() - start:.1f} s: {output}")


app.add_typer(comparing.app)


if __name__ == "__main__":
    app()
