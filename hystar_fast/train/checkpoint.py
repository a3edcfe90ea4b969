"""Checkpoints of a training run: what trains, the optimiser and the step, so that a run can go on where it stopped."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, optim

from hystar_fast.methods.interface import Method

_FORMAT = 1


def save_checkpoint(
    path: str | Path, method: Method, optimizer: optim.Optimizer, step: int, losses: list[float]
) -> None:
    """Write a checkpoint after `step` steps; the file is replaced in one move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(
        {
            "format": _FORMAT,
            "method": method.name,
            "step": step,
            "losses": losses,
            "parameters": {name: [p.detach() for p in group] for name, group in method.parameter_groups().items()},
            "optimizer": optimizer.state_dict(),
        },
        temporary,
    )
    temporary.replace(path)


def load_checkpoint(path: str | Path, method: Method, optimizer: optim.Optimizer) -> tuple[int, list[float]]:
    """Put a checkpoint's parameters and optimiser state back; returns the steps done and their losses.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another method or to other shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be a checkpoint, but {path} does not exist")
    if not is_zipfile(path):
        raise ValueError(f"path {path} is a damaged checkpoint: not the archive that torch.save writes")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"path {path} is a damaged checkpoint: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT or saved.get("method") != method.name:
        raise ValueError(f"path {path} must be a checkpoint of method {method.name!r}, format {_FORMAT}")
    groups = method.parameter_groups()
    expected = {name: [tuple(p.shape) for p in group] for name, group in groups.items()}
    found = {name: [tuple(p.shape) for p in group] for name, group in saved["parameters"].items()}
    if expected != found:
        raise ValueError(f"path {path} holds other parameters than method {method.name!r} has now")
    with torch.no_grad():
        for name, group in groups.items():
            for parameter, value in zip(group, saved["parameters"][name], strict=True):
                _copy(parameter, value)
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"]), list(saved["losses"])


def _copy(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.device, parameter.dtype))
