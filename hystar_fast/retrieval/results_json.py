"""Results as JSON: the machine, version and commit they come from, and files that are replaced in one move."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hystar_fast
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.text_files import to_json
from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.retrieval.metrics import Interval

_NAMED = 20  # of the skipped pictures


def machine() -> dict[str, Any]:
    """Return the processor, the threads and the versions; nothing that names the host or the user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "bf16_products": multiplies_bf16(torch.device("cpu")),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "open_clip_torch", "scikit-image")},
    }


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the git commit of the package in a checkout; it is read once a process."""
    root = Path(hystar_fast.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def version_info() -> dict[str, str | None]:
    """Return the version of the package, and its git commit in a checkout."""
    return {"version": hystar_fast.__version__, "commit": commit()}


def run_info() -> dict[str, Any]:
    """Return the head of a results file: version, commit, date and machine."""
    return {**version_info(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}


def skipped_info(skipped: Sequence[Skipped], pictures: int) -> dict[str, Any]:
    """Return how many of `pictures` could not be read, and the reasons of the first."""
    return {"n": len(skipped), "of": pictures, "first": {entry.path: entry.reason for entry in skipped[:_NAMED]}}


def interval_info(found: Interval) -> dict[str, float | int]:
    """Return an interval in per cent."""
    return {"value": to_percent(found.value), "low": to_percent(found.low), "high": to_percent(found.high)}


def to_percent(value: float) -> float:
    """Return a share in per cent with two decimals."""
    return round(100 * value, 2)


def check_output(folder: Path) -> None:
    """Raise ValueError if the output folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one move, so that a reader always gets a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(to_json(content) + "\n", encoding="utf-8")
    temporary.replace(path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
