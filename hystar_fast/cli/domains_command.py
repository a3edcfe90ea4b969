"""``hystar-fast domains``: the options of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import Adapter, Device, Folder, Json, MovedBackbone, MovedWeights
from hystar_fast.terminal.console import create_console, print_json

METRICS = "mAP@200:capped:interpolated,mAP@200:capped,Prec@200:k,mAP@all,R@1"


@clear_errors(
    stopped="nothing is kept of a stopped run: start again with {command}",
    directory="--adapter",
    pretrained="--weights",
    images="--data",
    metric="--metrics",
    styles="--style",
)
def domains(
    adapter: Adapter = None,
    method: Annotated[
        str | None, typer.Option(help="A method without training instead of an adapter: pixels, hog or frozen.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="emoji, or a folder of domains, which may be pacs:, office-home: or domainnet:<path>."),
    ] = "emoji",
    split: Annotated[
        str | None,
        typer.Option(help="val, test or all: by default test; without splits all that the adapter was not trained on."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="As of eval, separated by commas.")] = METRICS,
    style: Annotated[
        list[str] | None, typer.Option(help="A domain, instead of all of the data. May be repeated.")
    ] = None,
    identify: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="tki:table3: find the metrics under which the frozen CLIP has its figures."),
    ] = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    output: Folder = Path("runs/domains"),
    limit: Annotated[int | None, typer.Option(min=2, help="Use at most so many pictures of each domain.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Search every domain of a data set for the categories of every other one, with 95 % intervals."""
    from hystar_fast.cli.domains_work import DomainSettings, run_domains, run_identify

    if adapter is not None and method is not None:
        raise ValueError("method must be left out if --adapter is given, got both: evaluate one, then the other")
    if identify is not None and (adapter is not None or method not in (None, "frozen") or style or metrics != METRICS):
        raise ValueError("identify must be given without --adapter, --style and --metrics: it is of the frozen CLIP")
    settings = DomainSettings(
        output, adapter, method, backbone, weights, data, split, metrics, tuple(style or ()), limit, device
    )
    console = create_console(stderr=as_json)
    found = run_domains(settings, console) if identify is None else run_identify(identify, settings, console)
    if as_json:
        print_json(found)
