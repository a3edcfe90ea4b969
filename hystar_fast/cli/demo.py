"""The demo: train on the embedded drawings, compare on held-out concepts, and keep everything that was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hystar_fast.cli.demo_pictures import draw_answers, draw_map
from hystar_fast.cli.report import about, check_output, interval, recall_table, recalls, write_json
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.naive import NaiveLoss, measure_step
from hystar_fast.methods.recipes import CHOSEN, DEMO_STEPS, demo_config
from hystar_fast.methods.suite import METHODS, TRAINED, create_hystar, create_method
from hystar_fast.retrieval.evaluate import Evaluation, difference, evaluate, images_to_embed
from hystar_fast.retrieval.index import Index
from hystar_fast.retrieval.placement import displace
from hystar_fast.retrieval.protocol import (
    DISPLACEMENT,
    GALLERY_STYLE,
    HARD_STYLES,
    LOW_RESOLUTION_SIDE,
    LOW_RESOLUTION_SOURCE,
    QUERY_STYLES,
    StyledConcepts,
    load_split,
)
from hystar_fast.train.loop import train
from hystar_fast.train.pairs import PairImages, PairSampler
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import pair_loss

INDEX_FOLDER, ADAPTER_FOLDER, RESULTS_FILE = "index", "adapter", "results.json"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        output: folder for everything it writes.
        seed: of the training order, the hypernetworks and LoRA.
        steps: training steps of each trained method.
        batch_size: pairs a step.
        pretrained: weights of the tiny backbone: "packaged", a path, or None for random ones.
        limit: use only so many concepts of each split; for trying things out.
    """

    output: Path
    seed: int = 0
    steps: int = DEMO_STEPS
    batch_size: int = 48
    pretrained: str | None = "packaged"
    limit: int | None = None


@dataclass
class _Run:
    settings: DemoSettings
    training: StyledConcepts
    held_out: StyledConcepts
    displaced: StyledConcepts
    results: dict[str, Any]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    def write(self) -> None:
        write_json(self.settings.output / RESULTS_FILE, self.results)


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Run the demo and return what it also writes to ``results.json``, which grows as it goes.

    Raises:
        ValueError: the output is a file, or a setting is out of range.
    """
    began = time.perf_counter()
    check_output(settings.output)
    settings.output.mkdir(parents=True, exist_ok=True)
    held_out = load_split("test", limit=settings.limit)
    run = _Run(settings, load_split("train", limit=settings.limit), held_out, displace(held_out, DISPLACEMENT), {})
    config = demo_config(settings.pretrained)
    run.results = _header(run, config.to_dict())
    hystar = create_hystar(config, seed=settings.seed)
    with _progress(console) as progress:
        for name in METHODS:
            method = hystar if name == "hystar" else create_method(name, config, seed=settings.seed)
            _train_and_evaluate(run, name, method, progress)
            run.write()
        hystar.model.save_pretrained(settings.output / ADAPTER_FOLDER)
        _write_index(run)
        task = progress.add_task("one step, naive and ours", total=None)
        run.results["training_step"] = _step_ratio(run, hystar)
        progress.update(task, total=1, completed=1)
        pictures = progress.add_task("pictures", total=2)
        draw_answers(run.held_out, run.evaluations, settings.output / "retrieval.png")
        progress.advance(pictures)
        draw_map(run.evaluations, settings.output / "embeddings.png")
        progress.advance(pictures)
    run.results["differences"] = _differences(run)
    run.results["seconds"] = round(time.perf_counter() - began, 1)
    run.write()
    show(run.results, console)
    console.print(
        f"wrote {settings.output}/: {RESULTS_FILE}, retrieval.png, embeddings.png, {ADAPTER_FOLDER}/, {INDEX_FOLDER}/"
    )
    return run.results


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables and findings of a results.json."""
    protocol = results["protocol"]
    title = f"R@1 / R@5 (%) over the whole gallery of {protocol['gallery']['n']} held-out concepts (* hard)"
    title += "\nbelow: 95 % interval of R@1 over concepts"
    console.print(recall_table(results["methods"], title))
    first = next(iter(results["methods"].values()))
    if "unseen_subgroups" in first["recall"]:
        title = "The same for queries of subgroups no adapter was trained on"
        console.print(recall_table(results["methods"], title, "unseen_subgroups"))
    for name, found in results["differences"].items():
        low, high = found["low"], found["high"]
        console.print(
            f"hystar - {name}: {found['value']:+.1f} points R@1, mean of hard [{low:+.1f}, {high:+.1f}]",
            highlight=False,
        )
    trained = {name: m["parameters"]["trainable"] for name, m in results["methods"].items() if name in TRAINED}
    console.print("trained parameters: " + ", ".join(f"{name} {n:,}" for name, n in trained.items()), highlight=False)
    step = results["training_step"]
    console.print(
        f"one training step: naive {step['naive_seconds']:.2f} s, ours {step['ours_seconds']:.2f} s, "
        f"naive / ours {step['ratio']:.2f}; the whole demo took {results['seconds']:.0f} s",
        highlight=False,
    )


def _train_and_evaluate(run: _Run, name: str, method: Method, progress: Progress) -> None:
    settings = run.settings
    entry: dict[str, Any] = {"parameters": {"trainable": 0}, "seconds": {}}
    if name in TRAINED:
        groups = count_parameters(method)
        entry["parameters"] = {"trainable": sum(groups.values()), **groups}
        recipe = _recipe(settings, name)
        task = progress.add_task(f"train {name}", total=settings.steps)
        start = time.perf_counter()
        losses = train(method, run.training, recipe, progress=lambda done, loss: progress.update(task, completed=done))
        entry["seconds"]["train"] = round(time.perf_counter() - start, 2)
        entry["learning_rates"] = dict(recipe.learning_rates)
        entry["loss"] = [round(loss, 4) for loss in losses]
    images = images_to_embed(run.held_out) + images_to_embed(run.displaced, HARD_STYLES) - len(run.held_out)
    task = progress.add_task(f"evaluate {name}", total=images)
    start = time.perf_counter()
    evaluation = evaluate(method, run.held_out, progress=_advance(progress, task))
    entry["recall"] = recalls(evaluation)
    displaced = evaluate(
        method, run.displaced, styles=HARD_STYLES, gallery=evaluation.gallery, progress=_advance(progress, task)
    )
    entry["seconds"]["evaluate"] = round(time.perf_counter() - start, 2)
    entry["recall"]["displaced"] = recalls(displaced)["all"]
    run.evaluations[name] = evaluation
    run.results["methods"][name] = entry


def _advance(progress: Progress, task: Any) -> Callable[[int], None]:
    return lambda done: progress.advance(task, done)


def _recipe(settings: DemoSettings, name: str) -> Recipe:
    return Recipe(CHOSEN[name], steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed)


def _step_ratio(run: _Run, method: HystarMethod) -> dict[str, Any]:
    recipe = replace(_recipe(run.settings, "hystar"), bf16=False)
    concepts = load_split("train", limit=min(recipe.batch_size, len(run.training)))
    data = PairImages.of(method, concepts, recipe.styles)
    batch = PairSampler(concepts, recipe.styles, recipe.batch_size, recipe.seed).batch(0)
    naive = NaiveLoss(method.model)
    measured = measure_step(
        method.model,
        lambda: pair_loss(method, data, batch.concepts, batch.styles, recipe, 0),
        lambda: pair_loss(naive, data, batch.concepts, batch.styles, recipe, 0),
    )
    return {
        "what": "forward and backward of one training step of this demo in float32, median of alternating repeats",
        "naive": "each sample's qkv weight and each MLP weight built anew, attention spelled out, eager StyleNCE",
        "naive_seconds": round(measured.naive, 4),
        "ours_seconds": round(measured.ours, 4),
        "ratio": round(measured.ratio, 3),
        "repeats": measured.repeats,
        "loss_difference": measured.loss_difference,
    }


def _differences(run: _Run) -> dict[str, Any]:
    found = {name: difference(run.evaluations["hystar"], run.evaluations[name]) for name in METHODS if name != "hystar"}
    return {name: interval(value) for name, value in found.items() if value is not None}


def _write_index(run: _Run) -> None:
    ids = [concept.id for concept in run.held_out.concepts]
    about = {
        "gallery": GALLERY_STYLE,
        "source": "emoji",
        "adapter": ADAPTER_FOLDER,
        "captions": run.held_out.texts,
    }
    Index(run.evaluations["hystar"].gallery, ids, about).save(run.settings.output / INDEX_FOLDER)


def _header(run: _Run, config: dict[str, Any]) -> dict[str, Any]:
    held_out = run.held_out
    return {
        **about(),
        "settings": {name: value for name, value in asdict(run.settings).items() if name != "output"},
        "config": config,
        "protocol": {
            "gallery": {"style": GALLERY_STYLE, "n": len(held_out), "concepts": "test split, all of them"},
            "queries": {style: len(held_out.rows(style)) for style in QUERY_STYLES},
            "hard": list(HARD_STYLES),
            "lowres": f"{LOW_RESOLUTION_SOURCE} at {LOW_RESOLUTION_SIDE} pixels, enlarged again",
            "displaced": f"hard queries shifted and scaled at random by up to {DISPLACEMENT:.0%}, the same for all",
            "unseen_subgroups": int(held_out.unseen.sum()),
            "training_concepts": len(run.training),
            "training_queries": {style: len(run.training.rows(style)) for style in QUERY_STYLES},
            "ties": "count against the query",
            "intervals": "95 %, percentile bootstrap over concepts, 2000 resamples",
        },
        "methods": {},
    }


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)
