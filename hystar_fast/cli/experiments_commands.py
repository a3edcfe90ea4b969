"""``hystar-fast experiments``: the paper's tables and figures, and comparisons of methods (docs/experiments.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.examples import examples
from hystar_fast.cli.options import Config, Json, Output, Set, setting_changes
from hystar_fast.terminal.console import Console, create_console, print_json

if TYPE_CHECKING:
    from hystar_fast.experiments.experiment_settings import ExperimentSettings

_CONTINUE = "what is done is kept: continue with {command}"

app = typer.Typer(
    name="experiments",
    no_args_is_help=True,
    help="The paper's tables and figures, and comparisons of methods. Settings are TOML: see docs/experiments.md.",
    epilog=examples("experiments"),
)


def _read(
    config: str, set_: list[str] | None, output: Path | None, *, as_json: bool = False
) -> tuple[ExperimentSettings, Console]:
    """Return the settings, after the device and the weights were checked, and a console with a log."""
    from hystar_fast.cli.downloads import announce_downloads
    from hystar_fast.experiments.experiment_settings import read_experiment

    settings = read_experiment(config, setting_changes(set_, run__output=output))
    console = create_console(stderr=as_json)
    settings.device()
    announce_downloads(settings.config(), console)
    console.log_to(settings.output)
    return settings, console


@app.command(epilog=examples("experiments tune"))
@clear_errors(stopped=_CONTINUE)
def tune(config: Config = "emoji", set_: Set = None, output: Output = None, as_json: Json = False) -> None:
    """Select learning rates on the validation part, with the same number of trials for every method."""
    from hystar_fast.experiments.tune import tune as run_tune

    settings, console = _read(config, set_, output, as_json=as_json)
    chosen = run_tune(settings, console)
    if as_json:
        print_json(chosen)


@app.command(epilog=examples("experiments compare"))
@clear_errors(stopped=_CONTINUE)
def compare(config: Config = "emoji", set_: Set = None, output: Output = None, as_json: Json = False) -> None:
    """Tune, train and evaluate methods with one budget, and print their differences from Hystar."""
    from hystar_fast.experiments.compare import run_compare

    settings, console = _read(config, set_, output, as_json=as_json)
    record = run_compare(settings, console)
    if as_json:
        print_json(record)


@app.command(epilog=examples("experiments reproduce"))
@clear_errors(stopped=_CONTINUE)
def reproduce(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE", help="table1 to table14, or all; of other papers acnet:table2, fgan:all."),
    ],
    config: Config = "emoji",
    set_: Set = None,
    output: Output = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help='"emoji" runs rows of acnet, fgan, ma_sbir and tki; pacs:DIR those of tki:table3, folders:DIR those '
            "of ma_sbir:table1, table3 and table7.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With --data, of each row.")] = None,
    as_json: Json = False,
) -> None:
    """Run the rows of the paper's tables, and print them beside the paper's figures."""
    from hystar_fast.experiments.domain_tables import is_domain_table
    from hystar_fast.experiments.published_tables import split_names
    from hystar_fast.experiments.reproduce import run_reproduce
    from hystar_fast.experiments.reproduce_domains import run_domain_table
    from hystar_fast.experiments.reproduce_embedded import run_embedded
    from hystar_fast.experiments.reproduce_published import run_published
    from hystar_fast.experiments.reproduce_sketches import run_sketch_table
    from hystar_fast.experiments.sketch_tables import sketch_table

    wanted, published = split_names(tables)
    alone = published[0] if len(published) == 1 and not wanted else None
    by_domains = alone is not None and is_domain_table(alone)
    by_sketches = alone is not None and sketch_table(alone) is not None
    if data not in (None, "emoji") and not (by_domains or by_sketches):
        raise ValueError(
            "data must be 'emoji', or for tki:table3 alone a data set of its domains, or for one of ma_sbir:table1, "
            f"table3 and table7 folders of sketches and photos, got {data!r}"
        )
    if data is None and steps is not None:
        raise ValueError(f"steps must be left out unless data is given, got {steps}")
    if data is not None and (wanted or not published):
        raise ValueError(f"data must be left out for tables of Hystar's paper, got {data!r} for {' '.join(tables)}")
    settings, console = _read(config, set_, output, as_json=as_json)
    if data is not None:
        if data != "emoji":
            on_data = run_domain_table if by_domains else run_sketch_table
            found = {tables[0]: on_data(published[0], data, settings, console, steps=steps)}
        else:
            found = run_embedded(published, settings.output, console, steps=steps, seeds=settings.seeds)
        if as_json:
            print_json(found)
        return
    results: dict[str, Any] = {**run_published(published, settings.output, console)} if published else {}
    if wanted:
        results |= {str(number): found for number, found in run_reproduce(wanted, settings, console).items()}
    if as_json:
        print_json(results)


@app.command(epilog=examples("experiments figure"))
@clear_errors(stopped=_CONTINUE)
def figure(
    numbers: Annotated[
        list[int],
        typer.Argument(
            metavar="NUMBER", help="3 and 5 (embeddings), 6 and 7 (curves of gamma and lambda), 8 to 11 (answers)."
        ),
    ],
    config: Config = "emoji",
    set_: Set = None,
    output: Output = None,
) -> None:
    """Draw figures of the paper; methods that the output folder does not hold are trained first."""
    from hystar_fast.experiments.figures import run_figures

    settings, console = _read(config, set_, output)
    run_figures(numbers, settings, console)


@app.command("fewshot", epilog=examples("experiments fewshot"))
@clear_errors(stopped=_CONTINUE)
def few_shot(config: Config = "emoji", set_: Set = None, output: Output = None, as_json: Json = False) -> None:
    """Classify base and new classes after training on a few pictures of the base classes, as CoOp splits them."""
    from hystar_fast.experiments.few_shot import run_few_shot

    settings, console = _read(config, set_, output, as_json=as_json)
    results = run_few_shot(settings, console)
    if as_json:
        print_json(results)
