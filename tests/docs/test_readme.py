"""What the README shows runs, and what it points at exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hystar_fast.cli.results import read_results
from hystar_fast.experiments.variants import is_variant

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CALLED = {
    "pixels": "pixels (floor)",
    "hog": "HOG (floor)",
    "frozen": "frozen CLIP",
    "ia3": "(IA)³",
    "vpt": "VPT",
    "adaptformer": "AdaptFormer",
    "freestyle": "FreestyleRet",
    "ssf": "SSF",
    "svft": "SVFT",
    "last_block": "the last block",
    "static": "static offsets alone",
    "lora": "LoRA",
    "hystar": "**Hystar**",
}
LINKS = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]


def test_there_are_snippets_and_links() -> None:
    assert len(SNIPPETS) >= 5 and len(LINKS) >= 5


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_snippet_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("link", LINKS)
def test_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link.split("#")[0]).exists(), f"README.md links to {link}, which is not there"


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.MULTILINE), target


def test_the_table_of_results_is_that_of_the_committed_runs() -> None:
    summary = read_results(ROOT / "docs/results/comparison").summary
    block = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")][2:]
    wanted = []
    for name, entry in summary.items():
        if is_variant(name):
            continue
        less = entry.get("difference", {}).get("all")
        wanted.append([
            CALLED.get(name, name),
            f"{entry['parameters']['trainable']:,}",
            mean(entry["recall"]["all"]["hard_mean"]["R@1"]),
            "–" if less is None else f"{-less['value']:+.1f} [{-less['high']:+.1f}, {-less['low']:+.1f}]",
            mean(entry["recall"]["unseen_subgroups"]["hard_mean"]["R@1"]),
        ])  # fmt: skip
    assert sorted(rows) == sorted(wanted)


def mean(found: dict[str, float]) -> str:
    deviation = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{deviation} [{found['low']:.1f}, {found['high']:.1f}]"


def test_the_demo_table_is_the_committed_run() -> None:
    methods = json.loads((ROOT / "docs/results/demo.json").read_text(encoding="utf-8"))["methods"]
    page = (ROOT / "docs/results/demo.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if re.match(r"\| (pixels|HOG|frozen|static|LoRA|\*\*Hystar)", line)]
    assert len(table) == len(methods)
    for line, method in zip(table, methods.values(), strict=True):
        for query, recall in method["recall"]["all"].items():
            cell = f"{recall['R@1']['value']:.1f} / {recall['R@5']['value']:.1f}"
            assert cell in line, f"{query}: the run says {cell}, the page {line}"
