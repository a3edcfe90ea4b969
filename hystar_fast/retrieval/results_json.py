"""Results as JSON: the machine, version and commit they come from, in files with a checksum."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hystar_fast
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.whole_files import opened_json, sealed_json, write_whole
from hystar_fast.methods.device import multiplies_bf16, processor_field
from hystar_fast.retrieval.metrics import Interval

_NAMED = 20  # of the skipped pictures


def machine() -> dict[str, Any]:
    """Return the processor, the threads and the versions; nothing that names the host or the user."""
    return {
        "processor": processor_field("model name") or platform.processor() or platform.machine(),
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a checksum in one move, so that a reader always gets a whole file."""
    write_whole(path, sealed_json(content))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote, or other JSON.

    Raises:
        ValueError: the file is damaged.
        OSError: the file cannot be read.
    """
    return opened_json(path.read_bytes(), str(path))


def set_aside(path: Path, results: Mapping[str, Any], identity: Sequence[str]) -> Path | None:
    """Rename a file of other results than those that will replace it, so that no run overwrites another's.

    Args:
        path: of the file.
        results: the new ones.
        identity: their entries that the results of the same command with the same settings share.

    Returns:
        The next free name, such as ``results-1.json``, or None where there was nothing to keep.
    """
    try:
        before = read_json(path)
        if all(before.get(name) == results.get(name) for name in identity):
            return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        pass  # whatever it is, it is not ours to overwrite
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
