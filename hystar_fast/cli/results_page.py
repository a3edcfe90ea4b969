"""A page of Markdown from a folder of results: what was run, the table of methods, and the paper's statements."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from hystar_fast.cli.claims import NOT_RUN, NOT_TESTABLE, UNTESTABLE
from hystar_fast.cli.report import write_json
from hystar_fast.cli.reproduce_rows import EXTRACTORS
from hystar_fast.cli.results import FIGURES, UNSEEN, Results, read_results
from hystar_fast.cli.verdicts import CONFIRMED, OPEN, OPPOSITE
from hystar_fast.methods.recipes import demo_config
from hystar_fast.methods.variants import Variant, is_variant
from hystar_fast.retrieval.evaluate_images import PROTOCOLS

VERDICTS = (CONFIRMED, OPPOSITE, OPEN, NOT_RUN, NOT_TESTABLE)
CLAIMS_FILE = "claims.json"


def write_page(folder: Path, page: Path, console: Console) -> list[dict[str, Any]]:
    """Write the page of a folder, and its verdicts as ``claims.json`` into the folder; returns the verdicts.

    Raises:
        ValueError: `folder` holds no comparison, or `page` is a folder.
    """
    if page.is_dir():
        raise ValueError(f"page must be a file, but {page} is a folder")
    results = read_results(folder)
    judged = results.judged()
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        number: quote(Path(os.path.relpath(path, page.parent)).as_posix()) for number, path in results.pictures.items()
    }
    page.write_text(markdown(results, judged, pictures), encoding="utf-8")
    write_json(folder / CLAIMS_FILE, judged)
    counts = _counts(judged)
    console.print("; ".join(f"{word}: {counts[word]}" for word in VERDICTS), highlight=False)
    console.print(f"wrote {page}, {folder / CLAIMS_FILE}")
    return judged


def markdown(results: Results, judged: Sequence[Mapping[str, Any]], pictures: Mapping[int, str]) -> str:
    """The page; `pictures` leads from it to the figures that have been drawn, by number."""
    plain, variants = ([n for n in results.summary if is_variant(n) == changed] for changed in (False, True))
    parts = ["# Results", _what_was_run(results), "## Methods", _methods(results, plain), _queries(results, plain)]
    if variants:
        parts += ["## Variants", _methods(results, variants), _queries(results, variants)]
    if "timed" in results.tables.get(EXTRACTORS, {}):
        parts += ["## Cost of the style extractors", _costs(results.tables[EXTRACTORS])]
    figures = [
        f"![Figure {number}]({path})\n\nFigure {number}: {FIGURES[number]}." for number, path in pictures.items()
    ]
    parts += [*_statements(judged), *_not_winning(results), *(["## Figures", *figures] if figures else [])]
    return "\n\n".join(parts) + "\n"


def commands(results: Results) -> list[str]:
    """The `hystar-fast compare` commands that make these runs.

    Variants that were not tuned by themselves, and those with fewer seeds, come apart.
    """
    record, tuning = results.record, results.tuning or {}
    tuned = {trial["method"] for trial in tuning.get("trials", ())}
    most = max(len(entry["seeds"]) for entry in results.summary.values())
    groups: dict[tuple[bool, int], list[str]] = {}
    for name, entry in results.summary.items():
        trained = bool(Variant.parse(name).grid())
        borrowed = trained and is_variant(name) and name not in tuned
        groups.setdefault((borrowed, len(entry["seeds"]) if trained else most), []).append(name)
    options = (
        _source_options(record)
        + f" --steps {record['steps']}"
        + f" --limit {record['limit']}" * (record["limit"] is not None)
    )
    options += f" --tuning-seeds {len(tuning['seeds'])}" if tuning else ""
    return [
        f"hystar-fast compare --output FOLDER{options} --seeds {seeds}{' --no-tune-variants' * borrowed} "
        f"--methods {','.join(names)}"
        for (borrowed, seeds), names in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1]))
    ]


def _source_options(record: Mapping[str, Any]) -> str:
    """The options of other data and another backbone than the demo's."""
    config, usual = record["config"], demo_config().to_dict()
    changed = {name: config[name] for name in ("backbone", "style", "style_pretrained") if config[name] != usual[name]}
    words = f" --data {record.get('data')}:ROOT" * ("data" in record)
    words += f" --protocol {record.get('protocol')}" * ("protocol" in record)
    words += "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    words += f" --weights {config['pretrained'] or 'random'}" * (config["pretrained"] != usual["pretrained"])
    words += f" --blocks {'-'.join(map(str, config['blocks'] or ()))}" * (config["blocks"] != usual["blocks"])
    return words + f" --batch-size {record.get('batch_size')}" * ("batch_size" in record)


def _what_was_run(results: Results) -> str:
    record, tuning = results.record, results.tuning or {}
    machine, versions = record["machine"], record["machine"]["versions"]
    asked = ", ".join(f"{count} {style}" for style, count in record["queries"].items())
    trials = tuning.get("trials", ())
    seconds = sum(entry["seconds"] for entry in (*trials, *results.runs))
    config = record["config"]
    tried = ""
    if tuning:
        tried = f" ({len(trials)} trials, {len(tuning['seeds'])} seed{'s' * (len(tuning['seeds']) > 1)} each)"
    protocol = PROTOCOLS[record.get("protocol", "full")]
    data = record.get("data", "embedded drawings")
    lines = [
        f"Data: {data}, gallery of {record['gallery']['n']} ({record['gallery']['concepts']}); queries: {asked}. "
        f"Backbone: {config['backbone']}, weights {config['pretrained']}, style {config['style']}. Every method that "
        f"trains: {record['steps']} steps; learning rates chosen on the validation split{tried}.",
        f"R@1 in per cent, {protocol}; ties {record['ties']}. ± is the {record['spread']}. [ ] is the interval: "
        f"{record['intervals']}. It says how much the choice of queries matters, and nothing of the seeds; differences "
        "are paired, on the same queries and seeds.",
        f"Hardware: {machine['processor']}, {machine['cores']} cores, {machine['system']}; torch {versions['torch']}, "
        f"Python {machine['python']}. hystar-fast {record['version']}, commit {record['commit']}, "
        f"{record['date'][:10]}. {seconds / 3600:.1f} hours of training and evaluation, added up over {len(trials)} "
        f"trials and {len(results.runs)} runs, some of which may have run side by side.",
        "```sh\n" + "\n".join(commands(results)) + "\n```",
    ]
    return "\n\n".join(lines)


def _methods(results: Results, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        entry = results.summary[name]
        recall, unseen = entry["recall"]["all"], entry["recall"].get("unseen_subgroups", {}).get("hard_mean")
        seconds = [run["seconds"] for run in results.runs if run["method"] == name]
        rates = ", ".join(f"{group} {rate:g}" for group, rate in entry["learning_rates"].items())
        rows.append([
            f"`{name}`",
            f"{entry['parameters']['trainable']:,}",
            rates or "–",
            len(entry["seeds"]),
            _bounded(recall["hard_mean"]["R@1"]),
            _bounded(recall["hard_mean"]["R@5"]),
            _difference(entry.get("difference", {}).get("all")),
            "–" if unseen is None else _bounded(unseen["R@1"]),
            f"{sum(seconds) / len(seconds):.0f}",
        ])  # fmt: skip
    headings = ["method", "trained", "learning rates", "seeds", "R@1", "R@5", "R@1 less Hystar", f"R@1, {UNSEEN}"]
    headings.append("s a run")
    return f"Mean of {', '.join(results.headline)}.\n\n" + _table(headings, rows)


def _queries(results: Results, names: Sequence[str]) -> str:
    kinds = [k for k in results.record["queries"] if any(k in results.summary[n]["recall"]["all"] for n in names)]
    rows = []
    for name in names:
        found = results.summary[name]["recall"]["all"]
        rows.append([f"`{name}`", *(_bounded(found[kind]["R@1"]) if kind in found else "–" for kind in kinds)])
    return "R@1 by query.\n\n" + _table(["method", *kinds], rows)


def _costs(table: Mapping[str, Any]) -> str:
    timed, machine, found = table["timed"], table["machine"], table["milliseconds"].items()
    rows = [[f"`{name}`", f"{ms['median']:.2f} [{ms['low']:.2f}, {ms['high']:.2f}]"] for name, ms in found]
    what = (
        f"Milliseconds a picture in batches of {timed['batch']}, untrained: median, fastest and slowest of "
        f"{timed['turns']} turns, on {timed['device']} ({machine['processor']}, {machine['torch_threads']} threads)."
    )
    return f"{what}\n\n" + _table(["method", "ms a picture"], rows)


def _statements(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = _counts(judged)
    tested = [row for row in judged if "difference" in row]
    summary = "; ".join(f"{word}: {counts[word]}" for word in VERDICTS if counts[word])
    parts = [
        "## The paper's statements",
        f"A statement is {CONFIRMED} if the 95 % interval of the paired difference lies on the paper's side of zero, "
        f"it is {OPPOSITE} if it lies on the other side, and the two are {OPEN} if it holds zero. The paper's own "
        "difference is of DSR, CLIP ViT-L/14 and batches of 24: its sign alone is compared. "
        f"{summary}. Of {len(tested)} intervals some {len(tested) / 20:.0f} would miss zero by chance alone.",
    ]
    for subject in dict.fromkeys(row["subject"] for row in tested):
        rows = [
            [row["what"], row["source"], _signed(row["paper_difference"]), _difference(row["difference"]), _said(row)]
            for row in tested
            if row["subject"] == subject
        ]
        parts.append(f"### {subject}\n\n" + _table(["statement", "where", "paper", "here", "verdict"], rows))
    missing = [row for row in judged if row["verdict"] == NOT_RUN]
    if missing:
        names = dict.fromkeys(name for row in missing for name in row["why"].split(", "))
        lines = []
        for subject in dict.fromkeys(row["subject"] for row in missing):
            without = [row for row in missing if row["subject"] == subject]
            runs = dict.fromkeys(name for row in without for name in row["why"].split(", "))
            count = f"{len(without)} statement{'s' * (len(without) > 1)}"
            lines.append(f"- {subject}, {count}: no run of {_listed(runs)}")
        run = f"hystar-fast compare --output FOLDER --methods {','.join(names)}"
        parts.append("### Not run\n\n" + "\n".join(lines) + f"\n\n```sh\n{run}\n```")
    untestable = [(f"{r['what']} ({r['source']})", r["why"]) for r in judged if r["verdict"] == NOT_TESTABLE]
    parts.append("### Not testable here\n\n" + _table(["statement", "why"], [*untestable, *UNTESTABLE]))
    return parts


def _not_winning(results: Results) -> list[str]:
    """Hystar less every other method, and in words where it is behind or level."""
    differences = results.differences()
    if not differences:
        return []
    kinds = list(dict.fromkeys(kind for found in differences.values() for kind in found))
    rows = [[f"`{name}`", *(_difference(found.get(kind)) for kind in kinds)] for name, found in differences.items()]
    said = []
    for kind in kinds:
        behind = [name for name, found in differences.items() if kind in found and found[kind]["high"] < 0]
        level = [name for name, found in differences.items() if kind in found and _holds_zero(found[kind])]
        words = f"behind {_listed(behind)}; " * bool(behind) + f"not told apart from {_listed(level)}" * bool(level)
        said.append(f"- {kind}: {words.rstrip('; ') or 'above all of them'}.")
    return [
        "## Where Hystar does not win",
        "R@1 of Hystar less each method's, with the paired interval.",
        _table(["method", *kinds], rows),
        "\n".join(said),
    ]


def _holds_zero(found: Mapping[str, Any]) -> bool:
    return bool(found["low"] <= 0 <= found["high"])


def _counts(judged: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {word: sum(row["verdict"] == word for row in judged) for word in VERDICTS}


def _bounded(found: Mapping[str, Any]) -> str:
    spread = "" if found.get("deviation") is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{spread} [{found['low']:.1f}, {found['high']:.1f}]"


def _difference(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def _said(row: Mapping[str, Any]) -> str:
    return row["verdict"] if row["verdict"] == OPEN else f"**{row['verdict']}**"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
