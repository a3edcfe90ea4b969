"""The commands that compare methods: tune, compare, fewshot, reproduce, figure, claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import (
    BackboneName,
    BatchSize,
    Blocks,
    Data,
    Device,
    FigureData,
    Folder,
    GalleryStyle,
    Jobs,
    Limit,
    ProtocolName,
    RunsOn,
    Steps,
    Style,
    StylePretrained,
    TestData,
    TuneVariants,
    Weights,
    numbers,
    pretrained,
)
from hystar_fast.cli.sharing import shares

if TYPE_CHECKING:
    from hystar_fast.cli.compare import CompareSettings
    from hystar_fast.cli.source import Source

app = typer.Typer()


def source_of(
    data: Data = "emoji",
    backbone: BackboneName = "tiny",
    weights: Weights = "packaged",
    style: Style = "clip",
    style_pretrained: StylePretrained = None,
    blocks: Blocks = None,
    protocol: ProtocolName = "full",
    device: RunsOn = None,
    batch_size: BatchSize = 48,
    limit: Limit = None,
    gallery_style: GalleryStyle = None,
) -> Source:
    """What a comparison is made on.

    Raises:
        ValueError: words that are no blocks.
    """
    from hystar_fast.cli.source import Source

    chosen = pretrained(weights)
    modulated = numbers(blocks)
    return Source(
        data, limit, protocol, backbone, chosen, style, style_pretrained, modulated, device, batch_size, gallery_style
    )


@shares("source", source_of)
def settings_of(
    output: Folder = Path("runs/reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, row or point, with seeds 0, 1, …")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Trials of each setting on the validation concepts.")] = 3,
    steps: Steps = None,
    tune_variants: TuneVariants = True,
    jobs: Jobs = 1,
    *,
    source: Source,
) -> CompareSettings:
    """How methods are tuned, trained and evaluated.

    Raises:
        ValueError: words that are no blocks.
    """
    from hystar_fast.cli.compare import CompareSettings

    return CompareSettings(
        output,
        steps=steps,
        seeds=range(seeds),
        tuning_seeds=range(tuning_seeds),
        source=source,
        tune_variants=tune_variants,
        jobs=jobs,
    )


@app.command()
@clear_errors()
@shares("source", source_of, without=("protocol",))
def tune(
    output: Annotated[Path, typer.Option(help="JSON file of all trials; those it holds are not run again.")] = Path(
        "runs/demo_tuning.json"
    ),
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed of every trial; several times for several. By default 0, 1 and 2.")
    ] = None,
    steps: Steps = None,
    jobs: Jobs = 1,
    *,
    source: Source,
) -> None:
    """Choose learning rates of static, lora and hystar on the validation part, with the same number of trials each."""
    from hystar_fast.cli.tune import tune as run_tuning
    from hystar_fast.methods.recipes import TUNING_SEEDS

    run_tuning(output, Console(), steps=steps, seeds=seed or TUNING_SEEDS, source=source, jobs=jobs)


@app.command()
@clear_errors()
@shares("settings", settings_of, output=Path("runs/compare"))
def compare(
    methods: Annotated[
        str | None, typer.Option(help="Names by commas, perhaps as hystar+gamma=10; by default all.")
    ] = None,
    *,
    settings: CompareSettings,
) -> None:
    """Tune, train and evaluate methods with one budget, and print how far each is from Hystar; goes on where it was."""
    from hystar_fast.cli.compare import run_compare

    if methods is not None:
        settings = replace(settings, methods=tuple(name.strip() for name in methods.split(",")))
    run_compare(settings, Console())


@app.command("fewshot")
@clear_errors()
@shares("source", source_of, without=("data", "protocol", "device", "batch_size", "limit", "gallery_style"))
def few_shot(
    data: Annotated[
        str,
        typer.Option(help="emoji:subgroup, emoji:group, or a folder of classes (with train/ and test/, or without)."),
    ] = "emoji:subgroup",
    methods: Annotated[str, typer.Option(help="Names separated by commas; frozen is zero-shot CLIP.")] = (
        "frozen,static,lora,hystar"
    ),
    shots: Annotated[int, typer.Option(min=1, help="Pictures to train on of each base class.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the shots, with seeds 0, 1, …")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Training steps.")] = 60,
    batch_size: Annotated[int, typer.Option(min=2, help="Classes a batch, with one picture each.")] = 48,
    *,
    source: Source,
    template: Annotated[
        str | None,
        typer.Option(help='Of class names, with one {}; by default "{}" for emoji, else "a photo of a {}."'),
    ] = None,
    tuning: Annotated[
        Path | None,
        typer.Option(
            help="A tuning.json of compare, for its learning rates; by default those of the demo with tiny, else the "
            "paper's of Hystar and the middle of each other method's grid."
        ),
    ] = None,
    output: Folder = Path("runs/fewshot"),
    limit: Annotated[int | None, typer.Option(min=1, help="Test at most so many pictures of each half.")] = None,
    device: Device = "auto",
) -> None:
    """Classify base and new classes after training on a few pictures of the base ones, as CoOp splits them."""
    from hystar_fast.cli.few_shot import FewShotSettings, run_few_shot

    names = tuple(name.strip() for name in methods.split(","))
    settings = FewShotSettings(
        output, data, names, source.config(), template, shots, range(seeds), steps, batch_size, tuning, limit, device
    )
    run_few_shot(settings, Console())


@app.command()
@clear_errors()
@shares("settings", settings_of)
def reproduce(
    tables: Annotated[list[str], typer.Argument(help="table1 to table14, or all.")],
    settings: CompareSettings,
    test_data: TestData = None,
    vgg: Annotated[str | None, typer.Option(help="Weights of VGG-16, for Table 10 and FreestyleRet.")] = None,
    dinov2: Annotated[str | None, typer.Option(help="Weights of DINOv2, for Table 10.")] = None,
    classes: Annotated[str, typer.Option(help="Data of Table 11, as of fewshot.")] = "emoji:subgroup",
) -> None:
    """Run the rows of the paper's tables, by default on the embedded drawings, beside its figures."""
    from hystar_fast.cli.few_shot import FEW_SHOT_STEPS
    from hystar_fast.cli.reproduce import ReproduceSettings, run_reproduce, table_numbers

    rows = replace(settings, test_data=test_data)
    few_shot_steps = FEW_SHOT_STEPS if settings.steps is None else settings.steps
    run_reproduce(ReproduceSettings(table_numbers(tables), rows, vgg, dinov2, few_shot_steps, classes), Console())


@app.command()
@clear_errors()
@shares("settings", settings_of, without=("tune_variants",))
def figure(
    numbers: Annotated[
        list[int], typer.Argument(help="3 and 5 (embeddings), 6 and 7 (curves of gamma and lambda), 8 to 11 (answers).")
    ],
    settings: CompareSettings,
    test_data: FigureData = None,
    projection: Annotated[
        str, typer.Option(help="tsne (needs scikit-learn), umap (needs umap-learn) or pca.")
    ] = "tsne",
) -> None:
    """Draw figures of the paper; trains what is not in the folder yet."""
    from hystar_fast.cli.figures import run_figures

    run_figures(numbers, replace(settings, test_data=test_data), Console(), projection=projection)


@app.command()
@clear_errors()
def claims(
    folder: Annotated[Path, typer.Argument(help="A folder that compare, reproduce or figure wrote into.")] = Path(
        "runs/compare"
    ),
    page: Annotated[Path | None, typer.Option(help="The Markdown file; by default results.md in the folder.")] = None,
) -> None:
    """Judge the paper's statements by the paired intervals of a folder, and write them with its tables as a page."""
    from hystar_fast.cli.results_page import write_page

    write_page(folder, folder / "results.md" if page is None else page, Console())
