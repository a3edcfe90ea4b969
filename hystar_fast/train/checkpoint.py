"""Checkpoints of a run: the trained parameters, the optimisers and the progress, so that the run can be resumed.

Of a method that makes its own steps it holds the parameters and buffers of its modules, and a state for each optimiser.

A checkpoint is what torch.save writes, with a SHA-256 of all of it as the comment of its zip archive: `torch.load`
still reads it, and one changed bit anywhere is found. It replaces the one before as a whole.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import Tensor, optim

from hystar_fast.data.whole_files import write_whole
from hystar_fast.methods.interface import Method
from hystar_fast.methods.step_trained import StepTrained

Optimizers: TypeAlias = "optim.Optimizer | Mapping[str, optim.Optimizer]"
_FORMAT = 3
_DIGEST = 64  # characters of a SHA-256


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        step: steps done.
        losses: the loss of each step.
        best: the best validation score and its step; None before the first validation.
        best_interval: the ends of its 95 % interval.
        log_size: bytes of the metrics log up to this step.
        log_sha256: their hash.
        skipped: path -> reason of pictures that could not be read.
        settings: of the run, so that another run does not continue from it by mistake.
        identity: what the run was made of beside its settings: the steps of a schedule, the data, the frozen weights.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: tuple[float, int] | None = None
    best_interval: tuple[float, float] | None = None
    log_size: int = 0
    log_sha256: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, method: Method, optimizers: Optimizers, progress: Progress) -> None:
    """Write a checkpoint; the file is replaced in one move.

    Raises:
        FloatingPointError: a parameter or a moment of an optimiser is not finite; the old file is kept.
    """
    content = {"format": _FORMAT, "method": method.name, **_state(method, optimizers), "progress": vars(progress)}
    if not _is_finite(content):
        raise FloatingPointError(
            f"the parameters of {method.name!r} are not finite after step {progress.step}: lower its learning rates"
        )
    write_checked(Path(path), content)


def load_checkpoint(path: str | Path, method: Method, optimizers: Optimizers) -> Progress:
    """Restore a checkpoint's parameters and the states of the optimisers, and return the progress.

    Raises:
        ValueError: the file is missing or damaged, is not finite, or belongs to another method or other shapes.
    """
    path = Path(path)
    saved = read_checkpoint(path)
    if saved.get("method") != method.name:
        raise ValueError(
            f"path must be a checkpoint of method {method.name!r}, got one of {saved.get('method')!r} in {path}"
        )
    state = _state(method, optimizers)
    if _shapes(state, "parameters", "modules") != _shapes(saved, "parameters", "modules"):
        raise ValueError(f"path must hold the parameters of method {method.name!r}, got others in {path}")
    if not _is_finite(saved):
        raise ValueError(f"path must hold finite parameters, got NaN or inf in {path}")
    with torch.no_grad():
        for name, group in state.get("parameters", {}).items():
            for parameter, value in zip(group, saved["parameters"][name], strict=True):
                parameter.copy_(value.to(parameter.device, parameter.dtype))
        for name, tensors in state.get("modules", {}).items():
            for key, tensor in tensors.items():
                tensor.copy_(saved["modules"][name][key].to(tensor.device, tensor.dtype))
    if isinstance(optimizers, optim.Optimizer):
        optimizers.load_state_dict(saved["optimizer"])
    else:
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
    return Progress(**saved["progress"])


def _state(method: Method, optimizers: Optimizers) -> dict[str, Any]:
    """Return what a checkpoint holds of a method: its parameters, or its modules where it makes its own steps."""
    if isinstance(method, StepTrained) and not isinstance(optimizers, optim.Optimizer):
        modules = {name: dict(module.state_dict()) for name, module in method.state().items()}
        return {"modules": modules, "optimizers": {name: one.state_dict() for name, one in optimizers.items()}}
    assert isinstance(optimizers, optim.Optimizer)
    parameters = {name: [p.detach() for p in group] for name, group in method.parameter_groups().items()}
    return {"parameters": parameters, "optimizer": optimizers.state_dict()}


def _shapes(content: Any, *names: str) -> Any:
    """Return the shapes of the tensors in some entries, or in all."""
    if isinstance(content, Tensor):
        return tuple(content.shape)
    if isinstance(content, dict):
        return {name: _shapes(entry) for name, entry in content.items() if not names or name in names}
    return [_shapes(entry) for entry in content]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint of any method.

    Raises:
        ValueError: the file is missing, damaged or of another format.
    """
    saved = read_checked(path)
    if saved.get("format") != _FORMAT:
        raise ValueError(f"path must be a checkpoint of format {_FORMAT}, got another content in {path}")
    return saved


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """Write what torch.save writes with its checksum, in one move."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()[:-2] + _DIGEST.to_bytes(2, "little")  # the last two bytes are the comment's length
    write_whole(path, archive + hashlib.sha256(archive).hexdigest().encode())


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote.

    Raises:
        ValueError: the file is missing or damaged, or has no checksum.
    """
    if not path.is_file():
        raise ValueError(f"path must be a checkpoint, but {path} does not exist")
    content = path.read_bytes()
    archive, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise ValueError(
            f"path must be a whole checkpoint, but {path} is damaged, or of version 0.1.0: its checksum does not fit. "
            "Delete it to start again"
        )
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"path must be a checkpoint, but {path} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"path must be a checkpoint, got another content in {path}")
    return saved


def _is_finite(content: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(content))


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for entry in content.values() if isinstance(content, dict) else content:
            yield from _tensors(entry)
