"""Checkpoints of a run: the trained parameters, the optimiser and the progress, so that the run can be resumed.

A checkpoint is written to a temporary file, flushed to the disk and renamed, so a process killed at any moment leaves
either the old file or the new one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, optim

from hystar_fast.methods.interface import Method

_FORMAT = 2


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        step: steps done.
        losses: the loss of each step.
        best: the best validation score and its step; None before the first validation.
        best_interval: the ends of its 95 % interval.
        log_size: bytes of the metrics log up to this step.
        skipped: path -> reason of pictures that could not be read.
        settings: of the run, so that another run does not continue from it by mistake.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: tuple[float, int] | None = None
    best_interval: tuple[float, float] | None = None
    log_size: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, method: Method, optimizer: optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint; the file is replaced in one move."""
    _write(Path(path), method, {"progress": vars(progress), "optimizer": optimizer.state_dict()})


def load_checkpoint(path: str | Path, method: Method, optimizer: optim.Optimizer) -> Progress:
    """Restore a checkpoint's parameters and optimiser state, and return the progress.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another method or other shapes.
    """
    saved = _restore(Path(path), method)
    optimizer.load_state_dict(saved["optimizer"])
    return Progress(**saved["progress"])


def _restore(path: Path, method: Method) -> dict[str, Any]:
    saved = read_checkpoint(path)
    if saved.get("method") != method.name:
        raise ValueError(
            f"path must be a checkpoint of method {method.name!r}, got one of {saved.get('method')!r} in {path}"
        )
    groups = method.parameter_groups()
    expected = {name: [tuple(p.shape) for p in group] for name, group in groups.items()}
    found = {name: [tuple(p.shape) for p in group] for name, group in saved["parameters"].items()}
    if expected != found:
        raise ValueError(f"path must hold the parameters of method {method.name!r}, got others in {path}")
    with torch.no_grad():
        for name, group in groups.items():
            for parameter, value in zip(group, saved["parameters"][name], strict=True):
                _copy(parameter, value)
    return saved


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint of any method.

    Raises:
        ValueError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise ValueError(f"path must be a checkpoint, but {path} does not exist")
    if not is_zipfile(path):
        raise ValueError(f"path must be a whole checkpoint, but {path} is damaged: not an archive of torch.save")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"path must be a whole checkpoint, but {path} is damaged: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(f"path must be a checkpoint of format {_FORMAT}, got another content in {path}")
    return saved


def _copy(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.device, parameter.dtype))


def _write(path: Path, method: Method, more: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    parameters = {name: [p.detach() for p in group] for name, group in method.parameter_groups().items()}
    with temporary.open("wb") as file:
        torch.save({"format": _FORMAT, "method": method.name, "parameters": parameters, **more}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
