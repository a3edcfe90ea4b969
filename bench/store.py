"""The results file. The whole file is written after each new row, so that an interrupted run keeps its rows.

A row has the commit of the kernels that it measured. ``--append`` keeps the rows that are not measured again, if the
machine and the versions are the same. On another machine or with other versions the file is replaced.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import harness
import torch

from hystar_fast.methods.device import multiplies_bf16, processor_field

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "numpy", "POT", "geomloss", "peft", "open_clip_torch", "transformers")
_SHARED = ("hystar_fast/ops/native.py",)
_CSRC = ("csrc/sinkhorn", "csrc/cpu", "csrc/constants.h")
STEMS = {
    "svd_linear": ("kernels", "hystar_fast/ops/svd_linear*", "hystar_fast/ref/svd_linear*"),
    "sinkhorn": (*_CSRC, "hystar_fast/ops/sinkhorn*", "hystar_fast/ref/sinkhorn*"),
    "style_nce": (
        "csrc/style_nce",
        *_CSRC,
        "hystar_fast/ops/style_nce*",
        "hystar_fast/ops/sinkhorn*",
        "hystar_fast/ref/style_nce*",
        "hystar_fast/ref/sinkhorn*",
    ),
    "perturbed_topk": (
        "csrc/perturbed_topk",
        *_CSRC[1:],
        "hystar_fast/ops/perturbed_topk*",
        "hystar_fast/ref/perturbed_topk*",
    ),
    "model": (
        "kernels",
        "csrc/style_nce",
        *_CSRC,
        *(f"hystar_fast/ops/{name}*" for name in ("svd_linear", "sinkhorn", "style_nce", "contexts", "transforms")),
        "hystar_fast/nn",
        "hystar_fast/models",
    ),
    "experts": ("kernels", "hystar_fast/ops/svd_linear*", "hystar_fast/nn"),
    "ceiling": ("bench/bench_ceiling.py",),
}


def sources(op: str, device: str) -> tuple[str, ...]:
    """Return the sources that a measurement of `op` on `device` depends on, as git pathspecs."""
    other = "cpu" if device == "cuda" else "cuda"
    unused = (f":!csrc/*{other}*", f":!hystar_fast/ops/*{other}*", *((":!kernels",) if device == "cpu" else ()))
    return (*STEMS[op], *_SHARED, *unused)


def git(*arguments: str) -> str:
    """Run git and return its output, which is empty if the command fails or there is no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def kernels(op: str, device: str) -> tuple[str, bool]:
    """Return the last commit that changed the sources of `op`, and whether the tree differs from it.

    In a copy of the tree without its repository, the environment variable BENCH_COMMIT names the commit.
    """
    given = os.environ.get("BENCH_COMMIT", "")
    if given:
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    paths = sources(op, device)
    return git("log", "-1", "--format=%H", "--", *paths), bool(git("status", "--porcelain", "--", *paths))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine() -> dict[str, Any]:
    """Describe the machine of the measurement."""
    cpu = processor_field("model name") or platform.processor()
    if not multiplies_bf16(torch.device("cpu")):  # some virtual machines hide AMX: the ratios are others
        cpu += " without fast bfloat16"
    system = f"{platform.system()} {platform.machine()}"
    described: dict[str, Any] = {"cpu": cpu, "threads": torch.get_num_threads(), "platform": system}
    if harness.DEVICE == "cuda":
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": _driver()}
    return described


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def default_path(tuned_malloc: bool) -> Path:
    """Return bench/results/<gpu, or cpu and its threads>.json."""
    where = machine()
    name = where.get("gpu") or f"{where['cpu']} {where['threads']} threads"
    slug = "-".join("".join(c if c.isalnum() else " " for c in name).lower().split())
    return ROOT / "bench" / "results" / f"{slug}{'-tuned-malloc' if tuned_malloc else ''}.json"


def head(tuned_malloc: bool) -> dict[str, Any]:
    """Return the entries of the results file that all of its rows share."""
    return {
        "device": harness.DEVICE,
        "machine": machine(),
        "tuned_malloc": tuned_malloc,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("op", "case", "provider", "mode", "dtype"))


class ResultsFile:
    """Rows on disk; with `append`, new rows are added to those of the file, and replace rows of the same key."""

    def __init__(self, path: Path, described: dict[str, Any], append: bool) -> None:
        self.path, self.head, self.added = path, described, 0
        self.rows: dict[tuple[str, ...], dict[str, Any]] = {}
        if append and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if all(before.get(name) == value for name, value in described.items()):
                self.rows = {key(row): row for row in before["rows"]}

    def is_fresh(self, *row_key: str) -> bool:
        """Return whether the file has a row (op, case, provider, mode, dtype) of the present kernels."""
        row = self.rows.get(row_key)
        commit, dirty = kernels(row_key[0], self.head["device"])
        return row is not None and bool(commit) and (row["commit"], row["dirty"], dirty) == (commit, False, False)

    def add(self, row: harness.Row) -> None:
        commit, dirty = kernels(row.op, self.head["device"])
        entry = {**asdict(row), "commit": commit, "dirty": dirty, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
        self.rows.pop(key(entry), None)
        self.rows[key(entry)] = entry
        self.added += 1
        self.write(self.rows.values())

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.head, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)
