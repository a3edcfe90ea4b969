"""The ``hystar-fast`` command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import hystar_fast
from hystar_fast.cli.errors import clear_errors
from hystar_fast.ops.status import info as op_info

app = typer.Typer(
    name="hystar-fast",
    help="Style-adaptive image retrieval: sketches, drawings, thumbnails and words find pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Seed of the training order and of what is drawn at random.")]
Weights = Annotated[str, typer.Option(help="Weights of the tiny backbone: packaged, random, or a safetensors file.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Use only so many concepts of each split, to try things out.")]
Jobs = Annotated[int, typer.Option(min=1, help="Trainings at a time, each a process with its share of the cores.")]
TuneVariants = Annotated[
    bool, typer.Option(help="Tune every variant by itself, or let it take the rates of its method where it can.")
]
BACKBONES = "tiny, open_clip:<name>, transformers:<id or path> or albef:<path>"
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")]
Folder = Annotated[Path, typer.Option(help="Folder for everything that is written.")]


def _console() -> Console:
    return Console()


def _pretrained(weights: str) -> str | None:
    return None if weights == "random" else weights


@app.command()
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
    with clear_errors():
        from hystar_fast.cli.demo import DemoSettings, run_demo
        from hystar_fast.methods.recipes import DEMO_STEPS

        chosen = DEMO_STEPS if steps is None else steps
        run_demo(DemoSettings(output, seed, chosen, pretrained=_pretrained(weights), limit=limit), _console())


@app.command()
def search(
    query: Annotated[Path | None, typer.Option(help="A picture: a sketch, a drawing, a thumbnail.")] = None,
    text: Annotated[str | None, typer.Option(help="Words, instead of a picture.")] = None,
    demo: Annotated[Path, typer.Option("--demo", "--index", help="What demo or embed wrote.")] = Path("runs/demo"),
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 5,
    picture: Annotated[Path | None, typer.Option(help="Also draw query and answers into this PNG.")] = None,
) -> None:
    """Answer a picture or words from the gallery that demo or embed indexed."""
    with clear_errors():
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
        _console().print(table)
        if picture is not None:
            searcher.picture(hits, query=query, words=text or "").save(picture)
            _console().print(f"wrote {picture}")


@app.command()
def info() -> None:
    """Say which implementation of each op runs here, and why a faster one does not."""
    with clear_errors():
        table = Table(title=f"hystar-fast {hystar_fast.__version__}", title_justify="left")
        rows = op_info()
        for heading in ("op", "device", "implementation", "why not a faster one"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(row["op"], row["device"], row["implementation"], row["reason"] or "–")
        _console().print(table)


@app.command()
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
    with clear_errors():
        from hystar_fast.cli.train import train_from

        changes = [*(set_ or ()), *(() if output is None else (f"run.output={output}",))]
        # of the processes torchrun starts, the first one speaks
        train_from(config, changes, Console(quiet=os.environ.get("RANK", "0") != "0"), resume=resume)


@app.command("eval")
def evaluate(
    adapter: Annotated[Path, typer.Option(help="An adapter that train or demo wrote.")] = Path("runs/demo/adapter"),
    method: Annotated[
        str | None, typer.Option(help="Instead of an adapter, a method without training: pixels, hog or frozen.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="emoji, dsr:, domainnet:, folders:, pairs: or shards:<path>, or a path recognised by its layout."
        ),
    ] = "emoji",
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    task: Annotated[
        str | None, typer.Option(help="instance, category or classify; by default instance where the data has any.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="full, or batch24: the published one, in batches of 24 instead of the gallery.")
    ] = "full",
    metrics: Annotated[
        str,
        typer.Option(
            help="R@k, mAP@all, mAP@k:positives|capped|found, each also :interpolated, "
            "Prec@k:k|gallery|positives; by commas."
        ),
    ] = "R@1,R@5",
    gallery_style: Annotated[str | None, typer.Option(help="For style folders, the one that answers.")] = None,
    categories: Annotated[Path | None, typer.Option(help="File of the categories to keep, one a line.")] = None,
    backbone: Annotated[str, typer.Option(help=f"Of frozen: {BACKBONES}.")] = "tiny",
    weights: Annotated[str, typer.Option(help="Of frozen: a tag, a file, packaged, or random.")] = "packaged",
    output: Folder = Path("runs/eval"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many pictures of each style.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate an adapter or a method on a data set, over the full gallery, with 95 % intervals."""
    with clear_errors():
        from hystar_fast.cli.evaluate import EvalSettings, run_evaluation

        settings = EvalSettings(
            output=output,
            adapter=adapter,
            method=method,
            backbone=backbone,
            pretrained=_pretrained(weights),
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
        run_evaluation(settings, _console())


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, searched recursively.")],
    adapter: Annotated[Path, typer.Option(help="An adapter that train or demo wrote.")] = Path("runs/demo/adapter"),
    output: Folder = Path("runs/index"),
    device: Device = "auto",
) -> None:
    """Index a folder of pictures, for search --index."""
    with clear_errors():
        from hystar_fast.cli.search import embed_folder

        start = time.perf_counter()
        console = _console()
        count = embed_folder(folder, adapter, output, console, device)
        console.print(f"indexed {count} pictures in {time.perf_counter() - start:.1f} s: {output}")


@app.command()
def tune(
    output: Annotated[Path, typer.Option(help="JSON file of all trials; those it holds are not run again.")] = Path(
        "runs/demo_tuning.json"
    ),
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed of every trial; several times for several. By default 0, 1 and 2.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Training steps of each trial; by default the demo's.")
    ] = None,
    jobs: Jobs = 1,
    weights: Weights = "packaged",
    limit: Limit = None,
) -> None:
    """Choose the demo's learning rates on the validation concepts, with the same trials for every method."""
    with clear_errors():
        from hystar_fast.cli.tune import tune as run_tuning
        from hystar_fast.methods.recipes import DEMO_STEPS, TUNING_SEEDS

        chosen = DEMO_STEPS if steps is None else steps
        seeds = seed or TUNING_SEEDS
        run_tuning(
            output, _console(), steps=chosen, seeds=seeds, pretrained=_pretrained(weights), limit=limit, jobs=jobs
        )


@app.command()
def compare(
    output: Folder = Path("runs/compare"),
    methods: Annotated[
        str | None, typer.Option(help="Names by commas, perhaps as hystar+gamma=10; by default all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each trained method, with seeds 0, 1, …")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Trials of each setting on the validation concepts.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each trial and run; by default the demo's.")
    ] = None,
    tune_variants: TuneVariants = True,
    jobs: Jobs = 1,
    weights: Weights = "packaged",
    limit: Limit = None,
) -> None:
    """Tune, train and evaluate methods with one budget, and print how far each is from Hystar; goes on where it was."""
    with clear_errors():
        from hystar_fast.cli.compare import CompareSettings, run_compare
        from hystar_fast.methods.recipes import DEMO_STEPS
        from hystar_fast.methods.variants import COMPARED

        settings = CompareSettings(
            output,
            COMPARED if methods is None else tuple(name.strip() for name in methods.split(",")),
            DEMO_STEPS if steps is None else steps,
            range(seeds),
            range(tuning_seeds),
            _pretrained(weights),
            limit,
            tune_variants,
            jobs,
        )
        run_compare(settings, _console())


@app.command("fewshot")
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
    backbone: Annotated[str, typer.Option(help=f"{BACKBONES}.")] = "tiny",
    weights: Annotated[str, typer.Option(help="Of the backbone: a tag, a file, packaged, or random.")] = "packaged",
    style: Annotated[
        str, typer.Option(help="Where the style vector comes from: clip, prefix, dinov2 or vgg.")
    ] = "clip",
    template: Annotated[
        str | None,
        typer.Option(help='Of class names, with one {}; by default "{}" for emoji, else "a photo of a {}."'),
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="A tuning.json of compare, for its learning rates.")] = None,
    output: Folder = Path("runs/fewshot"),
    limit: Annotated[int | None, typer.Option(min=1, help="Test at most so many pictures of each half.")] = None,
    device: Device = "auto",
) -> None:
    """Classify base and new classes after training on a few pictures of the base ones, as CoOp splits them."""
    with clear_errors():
        from hystar_fast.cli.few_shot import FewShotSettings, run_few_shot
        from hystar_fast.models.config import HystarConfig

        config = HystarConfig(backbone=backbone, pretrained=_pretrained(weights), style=style, blocks=None)
        names = tuple(name.strip() for name in methods.split(","))
        settings = FewShotSettings(
            output, data, names, config, template, shots, range(seeds), steps, batch_size, tuning, limit, device
        )
        run_few_shot(settings, _console())


@app.command()
def reproduce(
    tables: Annotated[list[str], typer.Argument(help="table1 to table14, or all.")],
    output: Folder = Path("runs/reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row, with seeds 0, 1, …")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Trials of each setting on the validation concepts.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each trial and run; by default the demo's.")
    ] = None,
    tune_variants: TuneVariants = True,
    jobs: Jobs = 1,
    weights: Weights = "packaged",
    vgg: Annotated[str | None, typer.Option(help="Weights of VGG-16, for Table 10.")] = None,
    dinov2: Annotated[str | None, typer.Option(help="Weights of DINOv2, for Table 10.")] = None,
    backbone: Annotated[
        str, typer.Option(help="What Table 5 times: tiny, or open_clip:ViT-L-14, say, with random weights.")
    ] = "tiny",
    limit: Limit = None,
) -> None:
    """Run the rows of the paper's tables on the embedded drawings, beside the paper's figures; goes on where it was."""
    with clear_errors():
        from hystar_fast.cli.compare import CompareSettings
        from hystar_fast.cli.few_shot import FEW_SHOT_STEPS
        from hystar_fast.cli.reproduce import ReproduceSettings, run_reproduce, table_numbers
        from hystar_fast.methods.recipes import DEMO_STEPS

        chosen = DEMO_STEPS if steps is None else steps
        rows = CompareSettings(
            output,
            steps=chosen,
            seeds=range(seeds),
            tuning_seeds=range(tuning_seeds),
            pretrained=_pretrained(weights),
            limit=limit,
            tune_variants=tune_variants,
            jobs=jobs,
        )
        shots = FEW_SHOT_STEPS if steps is None else steps
        run_reproduce(ReproduceSettings(table_numbers(tables), rows, vgg, dinov2, shots, backbone), _console())


@app.command()
def figure(
    numbers: Annotated[
        list[int], typer.Argument(help="3 and 5 (embeddings), 6 and 7 (curves of gamma and lambda), 8 to 11 (answers).")
    ],
    output: Folder = Path("runs/reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point of a curve, with seeds 0, 1, …")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Trials of each setting on the validation concepts.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each trial and run; by default the demo's.")
    ] = None,
    jobs: Jobs = 1,
    weights: Weights = "packaged",
    projection: Annotated[
        str, typer.Option(help="tsne (needs scikit-learn), umap (needs umap-learn) or pca.")
    ] = "tsne",
    limit: Limit = None,
) -> None:
    """Draw figures of the paper with the embedded drawings; trains what is not in the folder yet."""
    with clear_errors():
        from hystar_fast.cli.compare import CompareSettings
        from hystar_fast.cli.figures import run_figures
        from hystar_fast.methods.recipes import DEMO_STEPS

        settings = CompareSettings(
            output,
            steps=DEMO_STEPS if steps is None else steps,
            seeds=range(seeds),
            tuning_seeds=range(tuning_seeds),
            pretrained=_pretrained(weights),
            limit=limit,
            jobs=jobs,
        )
        run_figures(numbers, settings, _console(), projection=projection)


if __name__ == "__main__":
    app()
