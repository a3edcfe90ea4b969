"""What a folder of `compare` and `reproduce` holds, read back and judged: methods, statements of the paper, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hystar_fast.cli.claims import claims, judge
from hystar_fast.cli.compare import RESULTS_FILE, TUNING_FILE, asked_in, at_edge
from hystar_fast.cli.compare_table import REFERENCE, summarise
from hystar_fast.cli.report import USUAL_CUTOFFS, interval
from hystar_fast.cli.reproduce_rows import Base
from hystar_fast.cli.verdicts import headline_mean, paper_figure, verdict
from hystar_fast.data.paper_tables import TABLES, paper_table
from hystar_fast.methods.variants import is_variant
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.protocol import HARD_STYLES, IMAGE_STYLES, load_split
from hystar_fast.retrieval.seeds import Queries, Runs, all_of, paired_difference, runs_by_method

UNSEEN, REFERENCE_ROW = "unseen subgroups", "Hystar"
JOINT_FILE = "task-joint.json"
_SHEET = "the first ten answers of three methods to queries at fixed places of the held-out list, in"
FIGURES = {
    3: "pictures that ask, by style and by class",
    5: "features of the middle block of two styles and of their mixture, the mean of the two pictures",
    6: "R@1 along γ",
    7: "R@1 along λ",
    8: f"{_SHEET} three kinds of query",
    9: f"{_SHEET} two styles; another concept of the right subgroup has a frame of its own",
    10: f"{_SHEET} two styles; another concept of the right subgroup has a frame of its own",
    11: f"{_SHEET} one style",
}
"""What each figure of the paper shows here."""


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Attributes:
        record: ``compare.json``.
        tuning: ``tuning.json``; None where nothing was tuned.
        tables: number -> ``table<n>.json``, those that are there.
        runs: the runs with the rates that were chosen, the methods in the order they were first run.
        summary: method or variant -> what `summarise` says of it.
        evaluations: method or variant -> its runs.
        pictures: number -> ``figure<n>.png``, those that are there.
        joint: ``task-joint.json``; None where pictures and words have not asked together.
    """

    record: Mapping[str, Any]
    tuning: Mapping[str, Any] | None
    tables: Mapping[int, Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    evaluations: Mapping[str, Runs]
    pictures: Mapping[int, Path]
    joint: Mapping[str, Any] | None = None

    @property
    def headline(self) -> tuple[str, ...]:
        """The query styles whose mean is the headline."""
        return tuple(self.record.get("headline", HARD_STYLES))

    def judged(self) -> list[dict[str, Any]]:
        """Every statement of the paper with its verdict."""
        styles = tuple(self.record.get("headline", IMAGE_STYLES))
        base = Base.of(HystarConfig.from_dict(self.record["config"]))
        found = claims(list(self.evaluations), styles=styles, headline=self.headline, base=base)
        judged = [judge(claim, self.evaluations, self.headline) for claim in found]
        return [*judged, *self._judged_tables(), *self._judged_joint()]

    def edges(self) -> dict[str, list[str]]:
        """Method -> the parameter groups whose chosen rate is the lowest or highest of those tried."""
        tried: dict[str, list[Mapping[str, float]]] = {}
        for trial in (self.tuning or {}).get("trials", ()):
            tried.setdefault(trial["method"], []).append(trial["learning_rates"])
        found = {
            name: at_edge(self.record["chosen"][name], rates) for name, rates in tried.items() if name in self.summary
        }
        return {name: groups for name, groups in found.items() if groups}

    def differences(self) -> dict[str, dict[str, dict[str, float | int]]]:
        """Method (no variant of Hystar) -> queries -> Hystar less it, in per cent with the paired interval."""
        ours = self.evaluations.get(REFERENCE, ())
        found: dict[str, dict[str, dict[str, float | int]]] = {}
        for name, evaluations in self.evaluations.items():
            if name == REFERENCE or not ours or is_variant(name):
                continue
            kinds = [style for style in self.record["queries"] if style in all_of(evaluations)[0].ranks]
            asked = [("mean of " + ", ".join(self.headline), self.headline, False)]
            asked += [(kind, (kind,), False) for kind in kinds]
            if bool(ours[0].unseen.any()):
                asked.append((UNSEEN, self.headline, True))
            pairs = ((what, paired_difference(ours, evaluations, styles, unseen_only=u)) for what, styles, u in asked)
            found[name] = {what: interval(value) for what, value in pairs if value is not None}
        return found

    def _judged_tables(self) -> list[dict[str, Any]]:
        """The verdicts of the tables that are not retrieval by one query."""
        return [
            {
                "subject": f"Table {number}: {paper_table(number).what}",
                "here": "; ".join(filter(None, (table["ours"], table["here"]))),
                "what": f"{row['row']} {'above' if row['paper_difference'] > 0 else 'below'} {table['reference']}",
                "source": f"Table {number}",
                "runs": [row["run"], REFERENCE],
                "paper_difference": row["paper_difference"],
                "difference": row["difference"],
                "verdict": row["verdict"],
            }
            for number, table in self.tables.items()
            if table.get("task")
            for row in table["rows"]
            if "verdict" in row
        ]

    def _judged_joint(self) -> list[dict[str, Any]]:
        """Whether a picture and words together find more than the words alone, as Section C says of Hystar."""
        if self.joint is None or REFERENCE not in self.joint["summary"]:
            return []
        asked = asked_in(self.joint)
        assert asked is not None
        ours = runs_by_method([run for run in self.joint["runs"] if run["method"] == REFERENCE], asked)[REFERENCE]
        found = paired_difference(ours, ours, self.joint["headline"], other_styles=("text",))
        if found is None:
            return []
        paper = paper_table(7)
        printed = headline_mean(paper, REFERENCE_ROW), paper_figure(paper_table(1), f"{REFERENCE_ROW}-CLIP", "Text R@1")
        assert printed[0] is not None
        difference, gain = interval(found), round(printed[0] - printed[1], 1)
        row = {
            "subject": f"Table 7: {paper.what}",
            "what": "Hystar asked with picture and words above words alone",
            "source": "Table 7",
            "runs": [REFERENCE, REFERENCE],
            "paper_difference": gain,
            "difference": difference,
        }
        return [{**row, "verdict": verdict(gain, difference["low"], difference["high"])}]


def queries_in(record: Mapping[str, Any]) -> Queries:
    """What the ranks of a ``compare.json`` belong to."""
    return asked_in(record) or load_split("test", limit=record["limit"])


def chosen_runs(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of a ``compare.json`` with the rates that were chosen, but for methods of which one diverged."""
    chosen = record["chosen"]
    kept = [run for run in record["runs"] if run["learning_rates"] == chosen.get(run["method"], {})]
    diverged = {run["method"] for run in kept if "diverged" in run}
    return [run for run in kept if run["method"] not in diverged]


def read_results(folder: Path) -> Results:
    """Read a folder that `compare`, `reproduce` and `figure` have written into; its runs may come from several calls.

    Raises:
        ValueError: there is no comparison in it, or it is damaged.
    """
    record = _json(folder / RESULTS_FILE)
    tuning = _json(folder / TUNING_FILE) if (folder / TUNING_FILE).exists() else None
    tables = {n: _json(path) for n in TABLES if (path := folder / f"table{n}.json").exists()}
    pictures = {n: path for n in FIGURES if (path := folder / f"figure{n}.png").exists()}
    try:
        runs, queries = chosen_runs(record), queries_in(record)
        headline, cutoffs = record.get("headline", HARD_STYLES), record.get("cutoffs", USUAL_CUTOFFS)
        summary = summarise(runs, queries, headline, list(record["queries"]), cutoffs)
        joint = _json(folder / JOINT_FILE) if (folder / JOINT_FILE).exists() else None
        return Results(record, tuning, tables, runs, summary, runs_by_method(runs, queries), pictures, joint)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / RESULTS_FILE} holds no comparison: {error!r}") from error


def _json(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        needed = f"{path.parent} must be a folder that `hystar-fast compare` wrote into"
        raise ValueError(f"{needed}, but {path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, got a {type(found).__name__}")
    return found
