"""``hystar-fast experiments``: the paper's tables and figures, and comparisons of methods (docs/experiments.md)."""

from __future__ import annotations

from typing import Annotated

import typer

from hystar_fast.cli.console import create_console
from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import Config, Output, Set, setting_changes

app = typer.Typer(
    name="experiments",
    no_args_is_help=True,
    help="The paper's tables and figures, and comparisons of methods. Settings are TOML: see docs/experiments.md.",
)


@app.command()
@clear_errors()
def tune(config: Config = "emoji", set_: Set = None, output: Output = None) -> None:
    """Select learning rates on the validation part, with the same number of trials for every method."""
    from hystar_fast.experiments.experiment_settings import read_experiment
    from hystar_fast.experiments.tune import tune as run_tune

    run_tune(read_experiment(config, setting_changes(set_, output)), create_console())


@app.command()
@clear_errors()
def compare(config: Config = "emoji", set_: Set = None, output: Output = None) -> None:
    """Tune, train and evaluate methods with one budget, and print their differences from Hystar."""
    from hystar_fast.experiments.compare import run_compare
    from hystar_fast.experiments.experiment_settings import read_experiment

    run_compare(read_experiment(config, setting_changes(set_, output)), create_console())


@app.command()
@clear_errors()
def reproduce(
    tables: Annotated[list[str], typer.Argument(help="table1 to table14, or all.")],
    config: Config = "emoji",
    set_: Set = None,
    output: Output = None,
) -> None:
    """Run the rows of the paper's tables, and print them beside the paper's figures."""
    from hystar_fast.experiments.experiment_settings import read_experiment
    from hystar_fast.experiments.paper_tables import table_numbers
    from hystar_fast.experiments.reproduce import run_reproduce

    settings = read_experiment(config, setting_changes(set_, output))
    run_reproduce(table_numbers(tables), settings, create_console())


@app.command()
@clear_errors()
def figure(
    numbers: Annotated[
        list[int], typer.Argument(help="3 and 5 (embeddings), 6 and 7 (curves of gamma and lambda), 8 to 11 (answers).")
    ],
    config: Config = "emoji",
    set_: Set = None,
    output: Output = None,
) -> None:
    """Draw figures of the paper; methods that the output folder does not hold are trained first."""
    from hystar_fast.experiments.experiment_settings import read_experiment
    from hystar_fast.experiments.figures import run_figures

    run_figures(numbers, read_experiment(config, setting_changes(set_, output)), create_console())


@app.command("fewshot")
@clear_errors()
def few_shot(config: Config = "emoji", set_: Set = None, output: Output = None) -> None:
    """Classify base and new classes after training on a few pictures of the base classes, as CoOp splits them."""
    from hystar_fast.experiments.experiment_settings import read_experiment
    from hystar_fast.experiments.few_shot import run_few_shot

    run_few_shot(read_experiment(config, setting_changes(set_, output)), create_console())
