"""``hystar-fast demo``: train on the embedded drawings, compare on held-out concepts, and write the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hystar_fast.cli.demo_tables import HEADLINE, recall_table
from hystar_fast.data.displacement import DISPLACED, displace_queries
from hystar_fast.data.emoji import HARD_STYLES, LOW_RESOLUTION_SIDE, LOW_RESOLUTION_SOURCE, QUERY_STYLES, load_emoji
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.read_ahead import in_batches
from hystar_fast.data.whole_files import write_whole
from hystar_fast.experiments.learning_rates import DEMO_RATES, DEMO_STEPS
from hystar_fast.index.engine import ADAPTED, FROZEN, LARGEST_BATCH, Engine, Item
from hystar_fast.index.generation_methods import save_generation
from hystar_fast.index.kept_adapters import ADAPTER_FOLDER
from hystar_fast.index.local import INDEX_FILE
from hystar_fast.index.open_index import replace_index
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.naive import NaiveLoss, measure_step
from hystar_fast.methods.suite import DEMO_METHODS, DEMO_TRAINED, create_hystar, create_method, tiny_config
from hystar_fast.retrieval.answer_grid import answer_grid
from hystar_fast.retrieval.answers import TEXT, first_answers, pick_queries, query_vector, question_of
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.embedding_map import embedding_map
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.ranks import Ranks, paired_difference
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, set_aside, write_json
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress
from hystar_fast.train.loop import train
from hystar_fast.train.pairs import PairSampler, TrainingPairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import pair_loss

RESULTS_FILE = "results.json"
PICTURE = "retrieval.png"
PAGE = "hystar-fast serve {folder}"
KINDS = (*QUERY_STYLES, TEXT)
_DRAWN = ("frozen", "hystar")
_ANSWERS, _QUERIES_PER_KIND = 5, 2


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo.

    Attributes:
        output: folder for everything it writes.
        seed: of the training order, the hypernetworks and LoRA.
        steps: training steps of each trained method.
        batch_size: pairs a step.
        pretrained: weights of the tiny backbone: "packaged", a path, or None for random ones.
        limit: at most so many concepts of each split, to try things out.
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
    training: ImageSet
    test: ImageSet  # its queries are displaced
    registered: ImageSet
    results: dict[str, Any] = field(default_factory=dict)
    embedded: dict[str, dict[str, Embedded]] = field(default_factory=dict)
    ranks: dict[str, Ranks] = field(default_factory=dict)

    def write(self) -> None:
        write_json(self.settings.output / RESULTS_FILE, self.results)


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Run the demo and return the content of ``results.json``, which is written after every method.

    Raises:
        ValueError: the output is a file, holds other results or is being written by another command, or a setting is
            out of range.
    """
    with lock_folder(settings.output):
        return _run_demo(settings, console)


def _run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    start = time.perf_counter()
    _check_earlier(settings.output / RESULTS_FILE)
    console.log_to(settings.output)
    registered = load_emoji("test").select(limit=settings.limit)
    training = load_emoji("train").select(limit=settings.limit)
    run = _Run(settings, training, displace_queries(registered), registered)
    config = tiny_config(settings.pretrained)
    run.results = _head(run, config.to_dict())
    kept = set_aside(settings.output / RESULTS_FILE, run.results, ("settings", "config"))
    if kept is not None:
        console.print(f"kept the results of an earlier demo: {kept}")
    hystar = create_hystar(config, seed=settings.seed)
    methods = {}
    with Progress(console) as progress:
        for name in DEMO_METHODS:
            methods[name] = hystar if name == "hystar" else create_method(name, config, seed=settings.seed)
            _train_and_evaluate(run, name, methods[name], progress)
            run.write()
        hystar.model.save_pretrained(settings.output / ADAPTER_FOLDER)
        _write_index(run, hystar)
        task = progress.add_task("one step, naive and ours", total=None)
        run.results["training_step"] = _step_ratio(run, hystar)
        progress.update(task, total=1, completed=1)
        task = progress.add_task("pictures", total=2)
        _draw_answers(run, {name: methods[name] for name in _DRAWN})
        progress.advance(task)
        _draw_map(run)
        progress.advance(task)
    run.results["differences"] = _differences(run)
    run.results["seconds"] = round(time.perf_counter() - start, 1)
    run.write()
    show(run.results, console)
    console.print(
        f"wrote {settings.output}/: {RESULTS_FILE}, {PICTURE}, embeddings.png, {ADAPTER_FOLDER}/, {INDEX_FILE}"
    )
    for line in next_steps(settings.output):
        console.print(line)
    return run.results


def next_steps(folder: Path) -> tuple[str, ...]:
    """Return the last lines of the demo: where to look, and the command for the page."""
    return (
        f"see what was found: {folder / PICTURE}",
        f"search with drawings of your own: {PAGE.format(folder=folder)}",
    )


def _check_earlier(results: Path) -> None:
    """Raise ValueError if the folder holds results of another command; the demo replaces its own only."""
    if not results.exists():
        return
    try:
        is_own = "training_concepts" in read_json(results)["protocol"]
    except (ValueError, KeyError, TypeError):
        is_own = False
    if not is_own:
        raise ValueError(f"output must be another folder, got {results.parent}, which holds results of another command")


def show(results: dict[str, Any], console: Console) -> None:
    """Print the table and findings of a results.json: at most 80 columns, and a screen of lines."""
    size = results["protocol"]["gallery"]["n"]
    title = f"R@1 (%): queries whose own concept comes first of all {size} held-out concepts"
    title += f"\nqueries {DISPLACED}"
    title += "\n* hard queries, with their mean and its 95 % interval; registered: not displaced"
    console.print(recall_table(results["methods"], title))
    for name, found in results["differences"].items():
        low, high = found["low"], found["high"]
        console.print(f"hystar - {name}: {found['value']:+.1f} points, mean of hard [{low:+.1f}, {high:+.1f}]")
    trained = {name: m["parameters"]["trainable"] for name, m in results["methods"].items() if name in DEMO_TRAINED}
    console.print("trained parameters: " + ", ".join(f"{name} {n:,}" for name, n in trained.items()))
    step = results["training_step"]
    console.print(
        f"one training step: naive {step['naive_seconds']:.2f} s, ours {step['ours_seconds']:.2f} s, "
        f"naive / ours {step['ratio']:.2f}"
    )
    console.print(f"the demo took {results['seconds']:.0f} s")


def _train_and_evaluate(run: _Run, name: str, method: Method, progress: Progress) -> None:
    settings = run.settings
    entry: dict[str, Any] = {"parameters": {"trainable": 0}, "seconds": {}}
    if name in DEMO_TRAINED:
        groups = count_parameters(method)
        entry["parameters"] = {"trainable": sum(groups.values()), **groups}
        recipe = _recipe(settings, name)
        task = progress.add_task(f"train {name}", total=settings.steps)
        start = time.perf_counter()
        losses = train(method, run.training, recipe, progress=lambda done, loss: progress.update(task, completed=done))
        entry["seconds"]["train"] = round(time.perf_counter() - start, 2)
        entry["learning_rates"] = dict(recipe.learning_rates)
        entry["loss"] = [round(loss, 4) for loss in losses]
    pictures = len(run.test.records) + len(run.registered.records) - len(run.registered.gallery)
    task = progress.add_task(f"evaluate {name}", total=pictures)
    start = time.perf_counter()
    embedded: dict[str, Embedded] = {}
    ranks = evaluate(method, run.test, kinds=KINDS, embedded=embedded, progress=_advance(progress, task)).ranks
    gallery = {run.test.gallery_style: embedded[run.test.gallery_style]}
    registered = evaluate(
        method, run.registered, kinds=QUERY_STYLES, embedded=gallery, progress=_advance(progress, task)
    ).ranks
    entry["seconds"]["evaluate"] = round(time.perf_counter() - start, 2)
    entry["recall"] = {"all": _recalls(ranks), "registered": _recalls(registered)}
    unseen = _recalls(ranks, unseen_only=True)
    if HEADLINE in unseen:
        entry["recall"]["unseen"] = unseen
    run.ranks[name], run.embedded[name] = ranks, embedded
    run.results["methods"][name] = entry


def _recalls(ranks: Ranks, *, unseen_only: bool = False) -> dict[str, Any]:
    """Return R@1 and R@5 with intervals by kind of query and over the hard styles, in per cent."""
    groups: dict[str, Sequence[str]] = {**{kind: [kind] for kind in ranks.by_kind}, HEADLINE: HARD_STYLES}
    found: dict[str, Any] = {}
    for group, kinds in groups.items():
        hits = ranks.hits(kinds, 1, unseen_only=unseen_only)
        recalls = {f"R@{k}": ranks.recall(kinds, k, unseen_only=unseen_only) for k in (1, 5)}
        shown = {name: interval_info(value) for name, value in recalls.items() if value is not None}
        if hits is not None and shown:
            found[group] = {**shown, "n": int(hits.isfinite().sum())}
    return found


def _advance(progress: Progress, task: Any) -> Callable[[int], None]:
    return lambda done: progress.advance(task, done)


def _recipe(settings: DemoSettings, name: str) -> Recipe:
    return Recipe(DEMO_RATES[name], steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed)


def _step_ratio(run: _Run, method: HystarMethod) -> dict[str, Any]:
    """Time one training step on the naive path and on ours."""
    recipe = replace(_recipe(run.settings, "hystar"), bf16=False)
    batch_size = min(recipe.batch_size, len(run.training.gallery))
    pairs = TrainingPairs(run.training.select(limit=batch_size), (), method.resize)
    pairs.preload(method)
    batch = PairSampler(pairs, batch_size, recipe.seed).batch(0)
    naive = NaiveLoss(method.model)
    measured = measure_step(
        method.model,
        lambda: pair_loss(method, pairs, batch, recipe, 0),
        lambda: pair_loss(naive, pairs, batch, recipe, 0),
    )
    return {
        "what": "forward and backward of one training step of this demo in float32, median of alternating repeats",
        "naive": "builds each sample's qkv weight and each MLP weight, unfused attention, eager StyleNCE",
        "naive_seconds": round(measured.naive, 4),
        "ours_seconds": round(measured.ours, 4),
        "ratio": round(measured.ratio, 3),
        "repeats": measured.repeats,
        "loss_difference": measured.loss_difference,
    }


def _differences(run: _Run) -> dict[str, Any]:
    ours = run.ranks["hystar"]
    found = {name: paired_difference(ours, ranks, HARD_STYLES) for name, ranks in run.ranks.items() if name != "hystar"}
    return {name: interval_info(value) for name, value in found.items() if value is not None}


def _write_index(run: _Run, method: Method) -> None:
    style = run.test.gallery_style
    adapted, frozen = run.embedded["hystar"][style], run.embedded["frozen"][style]
    items = [Item(str(record.instance), style, caption=record.caption or "") for record in adapted.records]

    def fill(engine: Engine) -> None:
        vectors = (found.vectors.split(LARGEST_BATCH) for found in (adapted, frozen))
        for part, a, f in zip(in_batches(items, LARGEST_BATCH), *vectors, strict=True):
            engine.upsert(part, {ADAPTED: a, FROZEN: f})

    made = save_generation(method, run.settings.output, with_frozen=True)
    replace_index(run.settings.output, made, fill, {"sources": {style: {"emoji": style}}})


def _draw_answers(run: _Run, methods: dict[str, Method]) -> None:
    """Draw two queries of every kind with the first five answers of the frozen backbone and of Hystar."""
    test, gallery_style = run.test, run.test.gallery_style
    queries = pick_queries(test, KINDS, _QUERIES_PER_KIND * len(KINDS), turns=_QUERIES_PER_KIND)
    questions = []
    for query in queries:
        answers = {}
        for name, method in methods.items():
            vector = query_vector(method, test, query)
            answers[name] = first_answers(run.embedded[name][gallery_style], test, query, vector, _ANSWERS)
        questions.append(question_of(test, query, answers))
    title = f"Held-out concepts: first {_ANSWERS} of {len(test.gallery)}"
    note = "Queries at fixed places of the test split, not selected. ✓: the query's concept. ✗: another one."
    grid = answer_grid(questions, title, note)
    write_whole(run.settings.output / PICTURE, lambda file: grid.save(file, "PNG"))


def _draw_map(run: _Run) -> None:
    """Draw the embeddings of the held-out drawings in the frozen backbone and in Hystar, by style."""
    gallery_style = run.test.gallery_style
    panels = {
        name: {
            f"{style} (gallery)" if style == gallery_style else style: run.embedded[name][style].vectors
            for style in run.test.styles
        }
        for name in _DRAWN
    }
    note = "Held-out drawings, first two principal components of each encoder"
    embedding_map(panels, run.settings.output / "embeddings.png", note)


def _head(run: _Run, config: dict[str, Any]) -> dict[str, Any]:
    test, training = run.test, run.training
    captions = {TEXT: len(test.gallery)}
    unseen = sum(record.category in test.unseen_categories for record in test.gallery)
    return {
        **run_info(),
        "settings": {name: value for name, value in asdict(run.settings).items() if name != "output"},
        "config": config,
        "protocol": {
            "gallery": {"style": test.gallery_style, "n": len(test.gallery), "concepts": "test split, all of them"},
            "queries": {style: len(test.of_style(style)) for style in test.query_styles} | captions,
            "hard": list(HARD_STYLES),
            "lowres": f"{LOW_RESOLUTION_SOURCE} at {LOW_RESOLUTION_SIDE} pixels, enlarged again",
            "placement": f"queries {DISPLACED}, the same for all methods; registered: as they are drawn",
            "unseen_concepts": unseen,
            "training_concepts": len(training.gallery),
            "training_queries": {style: len(training.of_style(style)) for style in training.query_styles},
            "ties": "count against the query",
            "intervals": "95 %, percentile bootstrap over concepts, 2000 resamples",
        },
        "methods": {},
    }
