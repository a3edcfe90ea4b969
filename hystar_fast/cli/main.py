"""The ``hystar-fast`` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import hystar_fast
from hystar_fast.cli import domains_command, experiments_commands, index_commands
from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.examples import examples
from hystar_fast.cli.mean_shift_command import mean_shift
from hystar_fast.cli.options import (
    INDEX,
    Adapter,
    Device,
    Folder,
    GalleryStyle,
    Json,
    MovedBackbone,
    MovedWeights,
    Output,
    Queries,
    SearchCombine,
    SearchModality,
    SearchPicture,
    SearchStyle,
    SearchText,
    SearchWhere,
    Set,
    Top,
    backbone_changes,
    find_index,
    say_adapter,
    setting_changes,
    weights_of,
)
from hystar_fast.cli.save_delta_command import save_delta
from hystar_fast.cli.search_settings import SearchSettings
from hystar_fast.terminal.console import create_console, print_json

_CONTINUE = "every batch that was done is kept: continue with {command}"
_AGAIN = "nothing is kept of a stopped run: start again with {command}"


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
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(""),
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


@app.command(epilog=examples("demo"))
@clear_errors(stopped=_AGAIN)
def demo(
    output: Folder = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the training order and of random initialisation.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Training steps of each method.")] = 120,
    weights: Annotated[str, typer.Option(help="Weights of the backbone: packaged, random, or a file.")] = "packaged",
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use at most so many concepts of each split, to try things out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on the embedded drawings, compare with the baselines on held-out concepts, and write the results."""
    from hystar_fast.cli.demo import DemoSettings, run_demo

    settings = DemoSettings(output, seed, steps, pretrained=weights_of(weights), limit=limit)
    results = run_demo(settings, create_console(stderr=as_json))
    if as_json:
        print_json(results)


@app.command(epilog=examples("search"))
@clear_errors(directory="--index", index="--index", path="--query")
def search(
    query: Queries = None,
    text: SearchText = None,
    index: Annotated[
        str | None,
        typer.Option("--index", "--demo", help="A folder that embed or demo wrote: runs/index, else runs/demo."),
    ] = None,
    style: SearchStyle = None,
    modality: SearchModality = None,
    combine: SearchCombine = "similarity",
    where: SearchWhere = None,
    top: Top = 5,
    picture: SearchPicture = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find pictures for a picture, words or both in a gallery that demo or embed indexed."""
    settings = SearchSettings(query or [], text, style, combine, where, top, picture, None, device, modality)
    from hystar_fast.cli.search_command import run_search

    folder, found_at = find_index(index)
    console = create_console(stderr=as_json)
    if found_at:
        console.print(found_at)
    answers = run_search(folder, settings, console)
    if as_json:
        print_json(answers)


@app.command(epilog=examples("serve"))
@clear_errors()
def serve(
    index: Annotated[
        str | None,
        typer.Argument(metavar="INDEX", help="The index to serve: by default runs/index, else runs/demo."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to bind; another one than this machine's own needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="Lines `read TOKEN` and `write TOKEN`; the file's mode must be 0600.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the server may be called. May be repeated.")
    ] = None,
    allow_writes: Annotated[bool, typer.Option("--allow-writes", help="Let callers add and remove pictures.")] = False,
    max_body: Annotated[int, typer.Option(min=1, help="Largest body of a request in MiB.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of a picture in millions.")] = 40,
    queue: Annotated[int, typer.Option(min=1, help="Queries that are answered at a time; others are refused.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds in which a query is answered or refused.")] = 10.0,
    encoders: Annotated[int | None, typer.Option(min=1, help="Encoding threads; one for two cores or a GPU.")] = None,
    max_wait_ms: Annotated[
        float | None, typer.Option(min=0, max=1000, help="Wait so long for each query of a pass.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Answer queries over HTTP, and show a page to draw and search on."""
    from hystar_fast.cli.serve_command import run_serve

    folder, found_at = find_index(index)
    console = create_console()
    if found_at:
        console.print(found_at.replace("--index", "INDEX"))
    run_serve(
        folder,
        console,
        host=host,
        port=port,
        token_file=token_file,
        allow_hosts=allow_host or (),
        allow_writes=allow_writes,
        body_mib=max_body,
        megapixels=max_pixels,
        queue=queue,
        deadline=deadline,
        device=device,
        encoders=encoders,
        max_wait_ms=max_wait_ms,
    )


@app.command(epilog=examples("info"))
@clear_errors()
def info(as_json: Json = False) -> None:
    """Show this machine, which implementation of each op runs on it, and why a faster one does not."""
    from hystar_fast.cli.info_command import run_info

    run_info(create_console(), as_json=as_json)


@app.command(epilog=examples("train"))
@clear_errors(stopped="continue with {command} --resume", style="data.styles")
def train(
    config: Annotated[
        str, typer.Argument(help="A TOML file, or shipped settings: emoji (the embedded drawings) or paper.")
    ] = "emoji",
    data: Annotated[
        str | None, typer.Option(help="The data (data.source), such as a folder with sketches/ and photos/.")
    ] = None,
    gallery_style: Annotated[
        str | None,
        typer.Option(help="The folder of the pictures to be found (data.gallery_style), if it is not clear."),
    ] = None,
    set_: Set = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the folder.")] = False,
) -> None:
    """Train Hystar or another method; writes an adapter, a checkpoint and a log (docs/training.md)."""
    from hystar_fast.cli.train_command import train_from

    if Path(config).is_dir():
        raise ValueError(f"config must be a TOML file, got the folder {config}: hystar-fast train --data {config}")
    # under torchrun only the first process prints
    console = create_console(quiet=os.environ.get("RANK", "0") != "0")
    options = {"data__source": data, "data__gallery_style": gallery_style, "run__output": output}
    train_from(config, setting_changes(set_, **options), console, resume=resume)


@app.command("eval", epilog=examples("eval"))
@clear_errors(stopped=_AGAIN, directory="--adapter", pretrained="--weights", images="--data", metric="--metrics")
def evaluate(
    adapter: Adapter = None,
    method: Annotated[
        str | None, typer.Option(help="A method without training instead of an adapter: pixels, hog or frozen.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="emoji, or a path whose layout is recognised, such as a folder with sketches/ and photos/, or dsr:, "
            "domainnet:, folders:, pairs:, captions:, shards:, icons: or stamps:<path>."
        ),
    ] = "emoji",
    split: Annotated[
        str | None,
        typer.Option(
            help="val, test or all. By default test; of folders, pairs and shards all that the adapter was not trained "
            "on."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="instance, instance-in-category, category, classify or crossmodal; instance if the data has instances."
        ),
    ] = None,
    support: Annotated[
        str | None, typer.Option(help="For crossmodal, the split of the galleries: by default that of the queries.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="full, or batch24: the published one, in batches of 24 instead of the gallery.")
    ] = "full",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="R@k, mAP@all, mAP@k:positives|capped|found, each also :interpolated, "
            "Prec@k:k|gallery|positives|shortened; separated by commas. By default R@1,R@5; batch24 has its own."
        ),
    ] = None,
    gallery_style: GalleryStyle = None,
    retrieval: Annotated[str | None, typer.Option(help="Of FGAN: joint, regions or labels.")] = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            help="Only unseen categories, for zero-shot retrieval: sketchy21, sketchy25, tuberlin30, "
            "tuberlin30-authors, quickdraw30, subgroup (the embedded drawings'), half:<seed> or a file with one a line."
        ),
    ] = None,
    generalised: Annotated[
        str | None,
        typer.Option(help="With --unseen, seen pictures in the gallery, too: sample, sample+queries or all."),
    ] = None,
    categories: Annotated[Path | None, typer.Option(help="File of the categories to keep, one a line.")] = None,
    bits: Annotated[
        int | None, typer.Option(min=1, help="Also evaluate binary codes of so many bits, by Hamming distance.")
    ] = None,
    code: Annotated[str, typer.Option(help="With --bits: itq, or sign (one bit a number).")] = "itq",
    itq_fit: Annotated[
        str, typer.Option(help="Fit itq on train, the training pictures, or on queries (transductive).")
    ] = "train",
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    output: Folder = Path("runs/eval"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many pictures of each style.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate an adapter or a method on a data set, over the full gallery, with 95 % intervals."""
    from hystar_fast.cli.eval_codes import CodeSettings
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
        support=support,
        protocol=protocol,
        metrics=metrics,
        gallery_style=gallery_style,
        retrieval=retrieval,
        unseen=unseen,
        generalised=generalised,
        categories=categories,
        limit=limit,
        codes=None if bits is None else CodeSettings(bits, code, itq_fit),
        device=device,
    )
    results = run_evaluation(settings, create_console(stderr=as_json))
    if as_json:
        print_json(results)


@app.command(epilog=examples("embed"))
@clear_errors(stopped=_CONTINUE, directory="--adapter", pretrained="--weights", index="--output")
def embed(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of pictures, searched recursively; with --shards also a tar or a folder of tars.",
        ),
    ],
    adapter: Adapter = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    output: Annotated[Path | None, typer.Option(help=f"Folder of the index: by default {INDEX}.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the index of other pictures or of another model.")
    ] = False,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Write shards into this folder instead of an index, together with all processes that are given it, "
            "under torchrun or on other machines; index load makes an index of them."
        ),
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures of a shard (with --shards): by default 4096.")
    ] = None,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Try only the pictures that could not be read (with --shards).")
    ] = False,
    with_frozen: Annotated[
        bool, typer.Option("--with-frozen", help="Also embed with the frozen backbone (with --shards).")
    ] = False,
    device: Device = "auto",
) -> None:
    """Index a folder of pictures, for search; a second time, what has changed in it."""
    if shards is None:
        given = {"--shard-size": shard_size, "--retry-skipped": retry_skipped, "--with-frozen": with_frozen}
        alone = next((name for name, value in given.items() if value), None)
        if alone is not None:
            raise ValueError(f"{alone} must be left out unless --shards is given")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError("--shards must be given under torchrun, whose processes cannot write one index")
        from hystar_fast.cli.embed_command import run_embed

        console = create_console()
        found = say_adapter(adapter, console)
        changes = backbone_changes(backbone, weights)
        run_embed(source, found, output or INDEX, console, changes=changes, overwrite=overwrite, device=device)
        return
    from hystar_fast.cli.shards_command import ShardSettings, run_embed_shards

    if output is not None or overwrite:
        raise ValueError(f"{'--overwrite' if overwrite else '--output'} must be left out if --shards is given")
    console = create_console(quiet=os.environ.get("RANK", "0") != "0")
    found = say_adapter(adapter, console)
    settings = ShardSettings(source, shards, found, shard_size, retry_skipped, with_frozen, device)
    run_embed_shards(settings, console, changes=backbone_changes(backbone, weights))


app.command("domains", epilog=examples("domains"))(domains_command.domains)
app.command("mean-shift", epilog=examples("mean-shift"))(mean_shift)
app.command("save-delta", epilog=examples("save-delta"))(save_delta)
app.add_typer(index_commands.app, cls=WholeHelp)
app.add_typer(experiments_commands.app, cls=WholeHelp)


if __name__ == "__main__":
    app()
