"""What the adapters of a comparison do at another task than finding one picture by one query: Tables 2, 3 and 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hystar_fast.cli.compare import CompareSettings, adapter_folder, asked_in, joined_asked
from hystar_fast.cli.compare_table import summarise
from hystar_fast.cli.few_shot import PLAIN
from hystar_fast.cli.jobs import run_jobs
from hystar_fast.cli.report import USUAL_CUTOFFS, about, earlier, is_done, write_json
from hystar_fast.cli.source import Source
from hystar_fast.data.open import open_images
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.interface import Method
from hystar_fast.methods.on_device import placed
from hystar_fast.methods.suite import UNTRAINED
from hystar_fast.methods.variants import Variant, create_variant
from hystar_fast.retrieval.asked import recorded
from hystar_fast.retrieval.evaluate_images import PROTOCOLS, evaluate_images
from hystar_fast.retrieval.zero_shot import TEMPLATES

CATEGORY, CLASSIFY, JOINT = "category", "classify", "joint"
_SUFFIX = "+text, max"


@dataclass(frozen=True)
class _Evaluated:
    key: dict[str, Any]
    task: str
    output: Path
    source: Source
    data: str | None


def evaluate_task(task: str, settings: CompareSettings, record: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Evaluate the runs of a comparison at a task, and return what ``task-<task>.json`` then holds.

    "category": any picture of the query's category is right. "classify": the gallery is the names of the categories.
    "joint": a picture and its words ask together, the larger similarity deciding, and the words alone. The first two
    take the test part of `settings.test_data` where it is given; for the embedded drawings the categories are their
    subgroups. What the file holds is not evaluated again.

    Args:
        task: one of the three.
        settings: of the comparison; its folder has the adapters.
        record: the ``compare.json``.
        console: where progress is printed.

    Raises:
        ValueError: the data has nothing for the task, or the folder holds evaluations of other data.
    """
    data = None if task == JOINT else settings.test_data
    images = _images(data, settings.source)
    protocol = settings.source.protocol if task == JOINT else "full"
    names = _names(images)
    head = {
        "task": task,
        "data": images.name,
        "limit": settings.source.limit,
        "config": record["config"],
        "protocol": PROTOCOLS[protocol],
        "template": _template(images) if task == CLASSIFY else None,
        "gallery": len(names) if task == CLASSIFY else len(images.of_style(images.gallery_style)),
        "pictures": {style: len(images.of_style(style)) for style in images.styles},
    }
    path = settings.output / f"task-{task}.json"
    found = {**about(), **head, **earlier(path, head, "runs", holding="evaluations", place="folder")}
    keys = [
        {name: run[name] for name in ("method", "seed", "learning_rates")}
        for run in record["runs"]
        if run["method"] in record["summary"]
        and run["seed"] in settings.seeds
        and run["learning_rates"] == record["summary"][run["method"]]["learning_rates"]
    ]
    new = [
        _Evaluated(key, task, settings.output, settings.source, data) for key in keys if not is_done(key, found["runs"])
    ]
    for ranks, asked in track(run_jobs(_evaluate, new, settings.jobs), task, total=len(new), console=console):
        found["runs"].append(ranks)
        found["asked"] = joined_asked(found, asked)
        write_json(path, found)
    kept = [
        {**run, "parameters": record["summary"][run["method"]]["parameters"]}
        for key in keys
        for run in found["runs"]
        if key.items() <= run.items()
    ]
    asked_by_all = asked_in(found)
    assert asked_by_all is not None
    kinds = list(asked_by_all.numbers)
    headline = [kind for kind in kinds if kind != "text"]
    if task == JOINT:
        headline = [f"{style}{_SUFFIX}" for style in settings.source.parts().headline]
    cutoffs = settings.source.parts().cutoffs if task == JOINT else USUAL_CUTOFFS
    found |= {"headline": headline, "summary": summarise(kept, asked_by_all, headline, kinds, cutoffs)}
    write_json(path, found)
    return found


def _evaluate(run: _Evaluated) -> tuple[dict[str, Any], dict[str, Any]]:
    images = _images(run.data, run.source)
    method = placed(_method(run), run.source.place())
    joint = run.task == JOINT
    report = evaluate_images(
        method,
        images,
        task="instance" if joint else run.task,
        protocol=run.source.protocol if joint else "full",
        templates=(_template(images),),
    )
    rows = [row for row in report.rows if row.n and (not joint or row.queries.endswith(("text", _SUFFIX)))]
    if joint and not any(row.queries.endswith(_SUFFIX) for row in rows):
        raise ValueError(f"method {run.key['method']!r} or {images.name} has no words to ask with")
    ranks, asked = recorded(images, rows)
    return {**run.key, "ranks": ranks}, asked.to_dict()


def _method(run: _Evaluated) -> Method:
    name = run.key["method"]
    if Variant.parse(name).method in UNTRAINED:
        return create_variant(name, run.source.config())
    return load_method(adapter_folder(run.output, name, run.key["seed"]))


@lru_cache(maxsize=2)
def _images(data: str | None, source: Source) -> ImageSet:
    """The pictures that ask and answer."""
    return source.parts().images() if data is None else open_images(data, "test").select(limit=source.limit)


def _names(images: ImageSet) -> Sequence[str]:
    return list(dict.fromkeys(record.category for record in images.records if record.category is not None))


def _template(images: ImageSet) -> str:
    """Of the names of classes: the tiny backbone's captions are bare names, as those of the embedded drawings are."""
    return PLAIN if images.name == "emoji" else TEMPLATES[0]
