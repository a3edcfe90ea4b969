"""A page of Markdown from a folder of results: what was run, the table of methods, and the paper's statements."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from hystar_fast.cli.claims import NOT_RUN, NOT_TESTABLE, UNTESTABLE
from hystar_fast.cli.report import USUAL_CUTOFFS, write_json
from hystar_fast.cli.reproduce_rows import EXTRACTORS, reads_random_vgg
from hystar_fast.cli.results import FIGURES, UNSEEN, Results, read_results
from hystar_fast.cli.verdicts import CONFIRMED, OPEN, OPPOSITE
from hystar_fast.data.open import KINDS
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
    parts += [*_statements(results, judged), *_not_winning(results), *(["## Figures", *figures] if figures else [])]
    return "\n\n".join(parts) + "\n"


def commands(results: Results) -> list[str]:
    """The commands that make these runs, tables and figures.

    Variants that were not tuned by themselves, and those with fewer seeds, come apart.
    """
    tuned = {trial["method"] for trial in (results.tuning or {}).get("trials", ())}
    most = max(len(entry["seeds"]) for entry in results.summary.values())
    groups: dict[tuple[bool, int], list[str]] = {}
    for name, entry in results.summary.items():
        trained = bool(Variant.parse(name).grid())
        borrowed = trained and is_variant(name) and name not in tuned
        groups.setdefault((borrowed, len(entry["seeds"]) if trained else most), []).append(name)
    options = _options(results)
    found = [
        f"hystar-fast compare --output FOLDER{options} --seeds {seeds}{' --no-tune-variants' * borrowed} "
        f"--methods {','.join(names)}"
        for (borrowed, seeds), names in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1]))
    ]
    borrows = " --no-tune-variants" * any(borrowed for borrowed, _ in groups)
    if results.tables:
        numbers = " ".join(f"table{number}" for number in results.tables)
        found.append(f"hystar-fast reproduce {numbers} --output FOLDER{options} --seeds {most}{borrows}")
    if results.pictures:
        numbers = " ".join(map(str, results.pictures))
        found.append(f"hystar-fast figure {numbers} --output FOLDER{options} --seeds {most}")
    return found


def _options(results: Results) -> str:
    """The options that all commands of a folder share."""
    record, tuning = results.record, results.tuning
    options = _source_options(record) + f" --steps {record['steps']}"
    options += f" --limit {record['limit']}" * (record["limit"] is not None)
    return options + (f" --tuning-seeds {len(tuning['seeds'])}" if tuning else "")


def _source_options(record: Mapping[str, Any]) -> str:
    """The options of other data and another backbone than the demo's."""
    config, usual = record["config"], demo_config().to_dict()
    changed = {name: config[name] for name in ("backbone", "style", "style_pretrained") if config[name] != usual[name]}
    words = f" --data {_data_option(record['data'])}" if "data" in record else ""
    words += f" --protocol {record.get('protocol')}" * ("protocol" in record)
    words += f" --gallery-style {record.get('gallery_style')}" * ("gallery_style" in record)
    words += "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    words += f" --weights {config['pretrained'] or 'random'}" * (config["pretrained"] != usual["pretrained"])
    words += f" --blocks {'-'.join(map(str, config['blocks'] or ()))}" * (config["blocks"] != usual["blocks"])
    return words + f" --batch-size {record.get('batch_size')}" * ("batch_size" in record)


def _data_option(name: str) -> str:
    """How `--data` names a data set; where its name is that of no kind, it was a folder or a file."""
    return f"{name.lower()}:ROOT" if name.lower() in KINDS else "PATH"


def _what_was_run(results: Results) -> str:
    record, tuning = results.record, results.tuning or {}
    machine, versions = record["machine"], record["machine"]["versions"]
    asked = ", ".join(f"{count} {style}" for style, count in record["queries"].items())
    trials = tuning.get("trials", ())
    seconds = sum(entry["seconds"] for entry in (*trials, *results.runs))
    config = record["config"]
    tried = ""
    if tuning:
        tried = f" ({_tried(results)})"
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
        f"Python {machine['python']}. hystar-fast {record['version']}, {_commits(results)}; last on "
        f"{record['date'][:10]}. {seconds / 3600:.1f} hours of training and evaluation, added up over {len(trials)} "
        f"trials and {len(results.runs)} runs, some of which may have run side by side.",
        "```sh\n" + "\n".join(commands(results)) + "\n```",
    ]
    return "\n\n".join(lines)


def _tried(results: Results) -> str:
    """How many settings every method had, and which was best at the edge of them."""
    assert results.tuning is not None
    trials, seeds = results.tuning["trials"], len(results.tuning["seeds"])
    counts = Counter(trial["method"] for trial in trials)
    groups: dict[int, list[str]] = {}
    for name, count in counts.items():
        groups.setdefault(count // seeds, []).append(name)
    usual = max(groups, key=lambda settings: len(groups[settings]))
    words = f"{len(trials)} trials: {usual} settings a method, {seeds} seed{'s' * (seeds > 1)} each"
    for settings, names in sorted(groups.items()):
        words += f"; {settings} of {_listed(names)}" * (settings != usual)
    edges = [f"{' and '.join(groups)} of `{name}`" for name, groups in results.edges().items()]
    return words + f"; best at the lowest or highest tried: {', '.join(edges)}" * bool(edges)


def _commits(results: Results) -> str:
    """The commits that the runs were made at; a run that does not say was made at the head's."""
    counts = Counter(run.get("commit") or results.record["commit"] for run in results.runs)
    if len(counts) == 1:
        return f"commit {next(iter(counts))}"
    return "commits " + ", ".join(f"{name} ({count} runs)" for name, count in counts.items())


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
    places = results.record.get("cutoffs", USUAL_CUTOFFS)["R@5"]
    r5 = "R@5" if places == 5 else f"R@5 ({places} places)"
    headings = ["method", "trained", "learning rates", "seeds", "R@1", r5, "R@1 less Hystar", f"R@1, {UNSEEN}"]
    headings.append("s a run")
    random = [name for name in names if reads_random_vgg(name, results.record["config"]["style"])]
    note = f"\n\n{_listed(random)}: with random weights of VGG-16, of which none are packaged." if random else ""
    return f"Mean of {', '.join(results.headline)}.\n\n" + _table(headings, rows) + note


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


def _statements(results: Results, judged: Sequence[Mapping[str, Any]]) -> list[str]:
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
        asked = dict.fromkeys(row["here"] for row in tested if row["subject"] == subject and row.get("here"))
        note = "".join(f"Ours: {words}.\n\n" for words in asked)
        parts.append(f"### {subject}\n\n{note}" + _table(["statement", "where", "paper", "here", "verdict"], rows))
    missing = [row for row in judged if row["verdict"] == NOT_RUN]
    if missing:
        names = dict.fromkeys(name for row in missing for name in row["why"].split(", "))
        lines = []
        for subject in dict.fromkeys(row["subject"] for row in missing):
            without = [row for row in missing if row["subject"] == subject]
            runs = dict.fromkeys(name for row in without for name in row["why"].split(", "))
            count = f"{len(without)} statement{'s' * (len(without) > 1)}"
            lines.append(f"- {subject}, {count}: no run of {_listed(runs)}")
        borrows = " --no-tune-variants" * any("--no-tune-variants" in command for command in commands(results))
        run = f"hystar-fast compare --output FOLDER{_options(results)}{borrows} --methods {','.join(names)}"
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
