"""``hystar-fast index``: an index that lives: create, add, sync, remove, search, embed again, look after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.examples import examples
from hystar_fast.cli.options import (
    Adapter,
    Device,
    Json,
    MovedBackbone,
    MovedWeights,
    Queries,
    SearchCombine,
    SearchModality,
    SearchPicture,
    SearchStyle,
    SearchText,
    SearchWhere,
    Top,
    backbone_changes,
    say_adapter,
)
from hystar_fast.cli.search_settings import SearchSettings
from hystar_fast.terminal.console import create_console, print_json

_CONTINUE = "every batch that was done is kept: continue with {command}"

app = typer.Typer(
    name="index",
    no_args_is_help=True,
    help="An index of pictures that grows and shrinks with its folders, and knows the model that made it.",
    epilog=examples("index"),
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The folder of the index, or its address: postgresql://… or milvus:….")
]
Checksum = Annotated[
    bool, typer.Option("--checksum", help="Read every file, although its size and time of change are known.")
]


@app.command(epilog=examples("index create"))
@clear_errors(directory="--adapter", pretrained="--weights", index="NAME")
def create(
    name: Name,
    adapter: Adapter = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    with_frozen: Annotated[
        bool, typer.Option("--with-frozen", help="Also keep the frozen backbone's vectors, to compare with.")
    ] = False,
    ids: Annotated[
        str, typer.Option(help="What an id is: path, or content (the SHA-256 of the file), which keeps no duplicates.")
    ] = "path",
) -> None:
    """Make an empty index for the vectors of a model."""
    from hystar_fast.cli.index_work import run_create

    console = create_console()
    found = say_adapter(adapter, console)
    changes = backbone_changes(backbone, weights)
    run_create(name, found, console, changes=changes, with_frozen=with_frozen, ids=ids)


@app.command(epilog=examples("index add"))
@clear_errors(stopped=_CONTINUE, index="NAME", source="SOURCE")
def add(
    name: Name,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Folders, pictures, tars, or lists (.txt, a path on each line)."),
    ],
    attributes: Annotated[
        Path | None,
        typer.Option(help='JSON objects, one a line: "path", a "caption" and attributes that --where can filter by.'),
    ] = None,
    checksum: Checksum = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Add pictures; those that are in the index and have not changed are not opened."""
    from hystar_fast.cli.index_work import run_add

    report = run_add(name, sources, attributes, create_console(stderr=as_json), checksum=checksum, device=device)
    if as_json:
        print_json(report)


@app.command(epilog=examples("index load"))
@clear_errors(stopped=_CONTINUE, index="NAME")
def load(
    name: Name,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of `hystar-fast embed --shards`.")],
    as_json: Json = False,
) -> None:
    """Load shards that many processes made; an index that is not there is made with the adapter beside them."""
    from hystar_fast.cli.shards_command import run_load

    report = run_load(name, out, create_console(stderr=as_json))
    if as_json:
        print_json(report)


@app.command(epilog=examples("index sync"))
@clear_errors(stopped=_CONTINUE, index="NAME")
def sync(
    name: Name,
    checksum: Checksum = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bring an index up to date with its folders: new, changed, moved and deleted pictures."""
    from hystar_fast.cli.index_work import run_sync

    report = run_sync(name, create_console(stderr=as_json), checksum=checksum, dry_run=dry_run, device=device)
    if as_json:
        print_json(report)


@app.command(epilog=examples("index remove"))
@clear_errors(index="NAME")
def remove(
    name: Name,
    ids: Annotated[list[str] | None, typer.Option("--id", help="An id. May be repeated.")] = None,
    where: SearchWhere = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before more than 100 pictures are removed.")] = False,
) -> None:
    """Remove pictures from an index; their files stay."""
    from hystar_fast.cli.index_work import run_remove

    run_remove(name, ids or [], where, create_console(), yes=yes)


@app.command(epilog=examples("index search"))
@clear_errors(index="NAME", path="--query", image="--query", k="--top")
def search(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The folder of the index, or its address.")
    ] = None,
    query: Queries = None,
    text: SearchText = None,
    style: SearchStyle = None,
    modality: SearchModality = None,
    combine: SearchCombine = "similarity",
    where: SearchWhere = None,
    view: Annotated[
        str | None, typer.Option(help="adapted or frozen; by default the first that the index has.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Ask this server instead, such as http://localhost:8000; no model is loaded.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with a token of the server.")] = None,
    top: Top = 5,
    picture: SearchPicture = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find pictures for pictures, words, or both."""
    if (name is None) == (server is None):
        raise ValueError("exactly one of NAME and --server must be given")
    settings = SearchSettings(query or [], text, style, combine, where, top, picture, view, device, modality)
    console = create_console(stderr=as_json)
    if server is not None:
        alone = {"--picture": picture is not None, "--device": device != "auto"}
        for option in (name for name, is_given in alone.items() if is_given):
            raise ValueError(f"{option} must be left out if --server is given")
        from hystar_fast.cli.search_server import run_server_search

        answers = run_server_search(server, settings, console, token_file=token_file)
    else:
        if token_file is not None:
            raise ValueError("--token-file must be left out unless --server is given")
        from hystar_fast.cli.search_command import run_search

        answers = run_search(str(name), settings, console)
    if as_json:
        print_json(answers)


@app.command(epilog=examples("index reembed"))
@clear_errors(stopped=_CONTINUE, index="NAME", directory="--adapter", pretrained="--weights")
def reembed(
    name: Name,
    adapter: Adapter = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    device: Device = "auto",
) -> None:
    """Embed all pictures with another model, in a new generation beside the one that is searched."""
    from hystar_fast.cli.index_work import run_reembed

    console = create_console()
    found = say_adapter(adapter, console)
    run_reembed(name, found, console, changes=backbone_changes(backbone, weights), device=device)


@app.command(epilog=examples("index switch"))
@clear_errors(index="NAME")
def switch(
    name: Name,
    generation: Annotated[int | None, typer.Argument(metavar="GENERATION", help="By default the newest.")] = None,
) -> None:
    """Let searches use another generation, from one moment to the next."""
    from hystar_fast.cli.index_work import run_switch

    run_switch(name, generation, create_console())


@app.command(epilog=examples("index drop"))
@clear_errors(index="NAME")
def drop(name: Name, generation: Annotated[int, typer.Argument(metavar="GENERATION")]) -> None:
    """Remove a generation that is not searched, with its adapter."""
    from hystar_fast.cli.index_work import run_drop

    run_drop(name, generation, create_console())


@app.command(epilog=examples("index info"))
@clear_errors(index="NAME")
def info(name: Name, as_json: Json = False) -> None:
    """Show the sources, generations and stamps of an index."""
    from hystar_fast.cli.index_work import run_info

    found = run_info(name, create_console(stderr=as_json))
    if as_json:
        print_json(found)


@app.command(epilog=examples("index accelerate"))
@clear_errors(index="NAME")
def accelerate(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Search exactly again.")] = False,
) -> None:
    """Build a graph for approximate search, above a million pictures (needs the extra ann)."""
    from hystar_fast.cli.index_work import run_accelerate

    run_accelerate(name, create_console(), off=off)


@app.command(epilog=examples("index verify"))
@clear_errors(index="NAME")
def verify(
    name: Name,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that sync embeds it again.")
    ] = False,
) -> None:
    """Read an index completely and name everything that is damaged; status 1 if something is."""
    from hystar_fast.cli.index_work import run_verify

    if not run_verify(name, create_console(), repair=repair):
        raise typer.Exit(1)


@app.command("copy", epilog=examples("index copy"))
@clear_errors(stopped=_CONTINUE, index="SOURCE", source="SOURCE", target="TARGET")
def copy_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The index to copy, as NAME of the other commands.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to; it is made if it is not there.")],
) -> None:
    """Copy an index to another engine, with its generations, adapters, styles and settings."""
    from hystar_fast.cli.index_work import run_copy

    run_copy(source, target, create_console())


@app.command(epilog=examples("index move"))
@clear_errors(index="NAME")
def move(
    name: Name,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The folder of a source, or its name.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Where the folder is now.")],
) -> None:
    """Say where the folder of a source is now; nothing is embedded again."""
    from hystar_fast.cli.index_work import run_move

    run_move(name, old, new, create_console())
