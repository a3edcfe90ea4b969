"""Options that several commands share, and the places where commands look if an option is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hystar_fast.terminal.console import Console

TRAINED, DEMO = Path("runs/train"), Path("runs/demo")
ADAPTER, INDEX = "adapter", Path("runs/index")
FROZEN = "the frozen tiny backbone"

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")]
Folder = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="An adapter that train, demo or experiments compare wrote. By default runs/train/adapter, else "
        "runs/demo/adapter, else none: the frozen backbone."
    ),
]
MovedBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="The adapter's backbone, if it was moved; without an adapter, which one: tiny, open_clip:<name>, "
        "transformers:<id or path> or albef:<path>.",
    ),
]
MovedWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="The adapter's weights, if they were moved; without an adapter, which: a tag, a file or random.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: section.key=value. May be repeated."),
]
Config = Annotated[
    str, typer.Option(help="A TOML file, or shipped settings: emoji (the embedded drawings), lean or paper.")
]
Output = Annotated[Path | None, typer.Option(help="Folder for everything that is written (run.output).")]
Queries = Annotated[
    list[Path] | None,
    typer.Option("--query", help="A picture: a sketch, a drawing, a thumbnail. May be repeated; all are one batch."),
]
SearchText = Annotated[str | None, typer.Option("--text", help="Words: alone, or together with the picture.")]
SearchStyle = Annotated[
    Path | None, typer.Option("--style", help="A picture whose style the query is read with, instead of its own.")
]
SearchModality = Annotated[
    str | None,
    typer.Option(
        "--modality",
        help="The style of the pictures, such as sketch: moves them to the gallery's (see mean-shift).",
    ),
]
GalleryStyle = Annotated[str | None, typer.Option(help="The style of the gallery of folders, shards and icons.")]
SearchCombine = Annotated[
    str,
    typer.Option("--combine", help="A picture and words together: the larger similarity, or softmax over the index."),
]
SearchWhere = Annotated[
    str | None,
    typer.Option(
        "--where", help="A filter: field=value, field in (a, b), path^=prefix, joined by and; attributes are fields."
    ),
]
SearchPicture = Annotated[
    Path | None, typer.Option("--picture", help="Also draw the query and its results into this PNG.")
]
Top = Annotated[int, typer.Option("--top", min=1, help="Number of results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and everything else to stderr.")]


def find_adapter(given: Path | None) -> tuple[Path | None, str]:
    """Return the adapter to use, the one given or what `train` or `demo` wrote, and a line that says so; None if none.

    The line is empty for one that was given.
    """
    if given is not None:
        return given, ""
    found = next((run / ADAPTER for run in (TRAINED, DEMO) if (run / ADAPTER / "config.json").is_file()), None)
    if found is not None:
        return found, f"using the adapter in {found} (--adapter for another)"
    return None, f"using {FROZEN}: neither {TRAINED / ADAPTER} nor {DEMO / ADAPTER} exists (--adapter for another)"


def say_adapter(given: Path | None, console: Console) -> Path | None:
    """Return what `find_adapter` finds, and print its line."""
    found, found_at = find_adapter(given)
    if found_at:
        console.print(found_at)
    return found


def find_index(given: str | None) -> tuple[str, str]:
    """Return the index to search, the one given or what `embed` or else `demo` wrote, and a line that says so."""
    if given is not None:
        return given, ""
    from hystar_fast.index.open_index import has_index

    found = INDEX if has_index(INDEX) or not has_index(DEMO) else DEMO
    return str(found), f"searching {found} (--index for another)"


def weights_of(word: str) -> str | None:
    """Return the weights of a command-line word: None for "random"."""
    return None if word == "random" else word


def backbone_changes(backbone: str | None, weights: str | None) -> dict[str, str | None]:
    """Return the fields of a configuration that the options change; None changes nothing."""
    changes: dict[str, str | None] = {} if backbone is None else {"backbone": backbone}
    return changes if weights is None else {**changes, "pretrained": weights_of(weights)}


def setting_changes(changes: list[str] | None, **given: object) -> list[str]:
    """Return the changes of ``--set`` and of options for single settings, such as ``run__output`` for "run.output"."""
    options = (f"{key.replace('__', '.')}={value}" for key, value in given.items() if value is not None)
    return [*(changes or ()), *options]
