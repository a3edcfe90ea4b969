"""Measure a method beside the frozen backbone, LoRA and Hystar on unseen subgroups of the embedded drawings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.whole_files import write_whole
from hystar_fast.experiments.embedded_runs import frozen, mean_over_seeds, run_folder, trained
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, write_json

FROZEN = "frozen"
Figures = dict[str, dict[str, Tensor]]  # way of comparing -> figure -> of every query, between 0 and 1
Draw = Callable[[Method, Mapping[str, ImageSet], Path], None]


@dataclass(frozen=True)
class Demo:
    """Methods to train, what is measured of them, and the page that is written.

    Attributes:
        name: of the method; its files are <name>.json, <name>.md and those of `draw`.
        introduction: lines of the page.
        ending: lines below the tables.
        configs: method -> shipped settings and their changes; the method itself and those beside it.
        variants: label -> changes of the method's own settings, which it is compared with too.
        parts: the data sets by name.
        chance: chance of mAP@all of a data set, in per cent.
        measure: the figures of a method on a data set.
        figures: those in the tables.
        usual: how the others are compared.
        own: how the method is compared.
        other_ways: further ways of the method, which its own is compared with.
        draw: makes the pictures of the page from the first seed.
        steps: of a label, the settings that ``--steps`` changes, where they are not `optim.steps`.
    """

    name: str
    introduction: tuple[str, ...]
    ending: tuple[str, ...]
    configs: Mapping[str, tuple[str, tuple[str, ...]]]
    parts: Callable[[], dict[str, ImageSet]]
    chance: Callable[[ImageSet], float]
    measure: Callable[[Method, ImageSet], Figures]
    figures: tuple[str, ...]
    usual: str
    own: str
    other_ways: tuple[str, ...]
    draw: Draw
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def trained(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """All that trains, its own first: label -> shipped settings and their changes."""
        config, changes = self.configs[self.name]
        own = {label: (config, (*changes, *its)) for label, its in {self.name: (), **self.variants}.items()}
        return own | {label: other for label, other in self.configs.items() if label not in own}

    @property
    def compared(self) -> dict[str, tuple[str, str]]:
        """The others that it is compared with: label -> name and the way it is compared by."""
        found = {name: (name, self.usual) for name in self.configs if name != self.name}
        found |= {label: (label, self.own) for label in self.variants}
        return found | {way: (self.name, way) for way in self.other_ways}


def beside(*changes: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the runs of LoRA and Hystar on the data that the changes of their settings name, without validation."""
    common = (*changes, "data.validation=none", "run.validate_every=0")
    lora = ("model.method=lora", "optim.learning_rate=0.003")
    return {"lora": ("emoji", (*common, *lora)), "hystar": ("emoji", common)}


def run_command(demo: Demo) -> None:
    """Run a demonstration with the options of the command line."""

    def main(
        seeds: Annotated[int, typer.Option(min=1)] = 3,
        steps: Annotated[int, typer.Option(help="Of each run; 0 for those of its settings.")] = 0,
        output: Annotated[Path, typer.Option(help="Folder of the three files.")] = Path("docs/results"),
        runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path(f"runs/{demo.name}-demo"),
    ) -> None:
        run_demo(demo, seeds, steps, output, runs)

    typer.run(main)


@dataclass
class _Runs:
    """Runs of one method: seed -> part -> figures; trained parameters; seconds of one core, None if not known."""

    found: dict[int, dict[str, Figures]]
    parameters: int = 0
    seconds: float | None = None


def run_demo(demo: Demo, seeds: int, steps: int, output: Path, runs: Path) -> None:
    """Train what is missing, measure it and write the page, after every method anew.

    Args:
        demo: what to do.
        seeds: runs of each method.
        steps: of each run; 0 for those of its settings.
        output: folder of the page.
        runs: folder of the runs.
    """
    parts = demo.parts()
    output.mkdir(parents=True, exist_ok=True)
    base = frozen()
    every = {FROZEN: _Runs({0: {part: demo.measure(base, images) for part, images in parts.items()}})}
    for name, (config, changes) in demo.trained.items():
        mine = every[name] = _Runs({})
        for seed in range(seeds):
            folder = run_folder(runs / f"{name}-{seed}")
            shorter = [f"{key}={steps}" for key in demo.steps.get(name, ("optim.steps",)) if steps]
            own = [*changes, f"run.seed={seed}", *shorter]
            method, mine.seconds = _trained(config, own, folder)
            mine.parameters = sum(count_parameters(method).values())
            mine.found[seed] = {part: demo.measure(method, images) for part, images in parts.items()}
            typer.echo(f"{name}, seed {seed}: {_seconds(mine.seconds)}")
            if name == demo.name and seed == 0:
                demo.draw(method, parts, output)
        result = _summary(demo, every, parts, seeds)
        write_json(output / f"{demo.name}.json", result)
        page = _page(demo, result)
        write_whole(output / f"{demo.name}.md", page.encode())
    typer.echo(page)


def _trained(config: str, changes: list[str], folder: Path) -> tuple[Method, float | None]:
    """Return the method of a run and its seconds of one core, None where a stopped run went on."""
    taken, fresh = folder / "seconds.json", not folder.exists()
    start = time.process_time()
    method = trained(config, changes, folder)
    if fresh:
        write_json(taken, {"cpu": round(time.process_time() - start, 1)})
    return method, float(read_json(taken)["cpu"]) if taken.is_file() else None


def _seconds(seconds: float | None) -> str:
    return "seconds not known, as the run was stopped in between" if seconds is None else f"{seconds:.0f} s"


def _summary(demo: Demo, every: Mapping[str, _Runs], parts: Mapping[str, ImageSet], seeds: int) -> dict[str, Any]:
    rows = []
    for name, runs in every.items():
        for way in runs.found[0][next(iter(parts))]:
            row: dict[str, Any] = {"method": name, "compared by": way, "trained parameters": runs.parameters}
            row["seconds of one core"] = runs.seconds
            against = {} if name == FROZEN else {FROZEN: (FROZEN, demo.usual)}
            if (name, way) == (demo.name, demo.own):
                against |= {label: other for label, other in demo.compared.items() if other[0] in every}
            for part in parts:
                row[part] = {}
                for figure in demo.figures:
                    ours = mean_over_seeds(runs.found, part, way, figure)
                    row[part][figure] = interval_info(bootstrap_mean(ours))
                    for label, (other, how) in against.items():
                        paired = ours - mean_over_seeds(every[other].found, part, how, figure)
                        row[part][f"{figure} - {label}"] = interval_info(bootstrap_mean(paired))
            rows.append(row)
    return {
        **run_info(),
        "seeds": seeds,
        "intervals": "95 %, paired bootstrap over queries of the mean over seeds",
        "sizes": {part: len(images.gallery) for part, images in parts.items()},
        "chance of mAP@all": {part: round(demo.chance(images), 2) for part, images in parts.items()},
        "rows": rows,
    }


def _page(demo: Demo, result: Mapping[str, Any]) -> str:
    many = f"{result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    lines = [
        *demo.introduction,
        f"Mean of {many}, per cent, with 95 % bootstrap intervals over queries. Made by",
        f"`python bench/{demo.name}_demo.py --seeds {result['seeds']}` on an {result['machine']['processor']}.",
        "",
    ]
    for part, size in result["sizes"].items():
        level = result["chance of mAP@all"][part]
        lines += [f"## {part}: a gallery of {size} (chance of mAP@all {level:.1f})", ""]
        header = ["method", "compared by", *(cell for figure in demo.figures for cell in (figure, "minus frozen"))]
        lines += _table(header)
        for row in result["rows"]:
            cells = [row["method"], row["compared by"]]
            for figure in demo.figures:
                cells += [cell_of(row[part][figure]), cell_of(row[part].get(f"{figure} - {FROZEN}"))]
            lines.append(f"| {' | '.join(cells)} |")
        own = next(r for r in result["rows"] if (r["method"], r["compared by"]) == (demo.name, demo.own))
        lines += [
            "",
            f"{demo.name} compared by {demo.own}, minus others in pairs:",
            "",
            *_table(["minus", *demo.figures]),
        ]
        for other in demo.compared:
            if f"{demo.figures[0]} - {other}" in own[part]:
                cells = [other, *(cell_of(own[part][f"{figure} - {other}"]) for figure in demo.figures)]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    missing = [name for name in demo.trained if name not in {row["method"] for row in result["rows"]}]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    costs = {row["method"]: row for row in result["rows"] if row["method"] != FROZEN}
    spent = [
        f"{name} {_seconds(row['seconds of one core'])}, {row['trained parameters']:,} parameters"
        for name, row in costs.items()
    ]
    return "\n".join([*lines, f"Training on one core, a seed: {'; '.join(spent)}.", "", *demo.ending, ""])


def _table(header: list[str]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]


def cell_of(value: Mapping[str, float] | None) -> str:
    """Return a figure with its interval, as in the tables of the pages; "" for none."""
    return "" if value is None else "{value:.1f} [{low:.1f}, {high:.1f}]".format(**value)
