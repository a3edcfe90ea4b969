"""The metrics log of a run: a file of JSON lines, and TensorBoard or wandb on request."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from hystar_fast.data.whole_files import write_whole

_INSTALL = "pip install 'hystar-fast[train]'"


class MetricsLog:
    """A file of one JSON object a line: the loss, rates and gradient norm of every step, and every validation.

    It holds nothing that differs between two equal runs (no times). A resumed run first cuts off the lines after its
    checkpoint, so the file of a run that was killed and resumed equals that of an uninterrupted run.

    Args:
        folder: gets ``metrics.jsonl``, and ``tensorboard/`` if requested.
        size: bytes of the log to keep; 0 starts a new log.
        sha256: the hash of these bytes.
        step: steps done before.
        tensorboard: also write TensorBoard events.
        wandb: also send everything to this wandb project.

    Raises:
        ValueError: the log is shorter than `size`, or its first `size` bytes have another hash.
        ModuleNotFoundError: TensorBoard or wandb is requested and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 0,
        sha256: str = "",
        step: int = 0,
        tensorboard: bool = False,
        wandb: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = self.path.read_bytes()[:size] if self.path.exists() else b""
        self._hash = hashlib.sha256(kept)
        if len(kept) < size or (size and self._hash.hexdigest() != sha256):
            raise ValueError(
                f"{self.path} must begin with the {size} bytes that its checkpoint records, got {len(kept)} or others: "
                "restore the log to resume the run, or delete the checkpoint to start again"
            )
        self._board = _tensorboard(folder / "tensorboard", step) if tensorboard else None
        self._wandb = _wandb(wandb, folder, resumes=step > 0) if wandb else None
        self._file = self.path.open("ab")
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Add a line; non-finite numbers are written as strings."""
        line = (json.dumps({"step": step, "kind": kind, **_finite(values)}) + "\n").encode()
        self._hash.update(line)
        self._file.write(line)
        self._file.flush()
        numbers = {f"{kind}/{name}": value for name, value in _flat(values).items()}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def sync(self) -> tuple[int, str]:
        """Flush the file to the disk; return the number of bytes written so far, and their hash."""
        os.fsync(self._file.fileno())
        return self._file.tell(), self._hash.hexdigest()

    def close(self) -> None:
        """Close the file and the other writers."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    return str(values) if isinstance(values, float) and values - values != 0 else values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"run.tensorboard needs TensorBoard: {_INSTALL}") from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _wandb(project: str, folder: Path, *, resumes: bool) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("run.wandb needs wandb: pip install 'hystar-fast[wandb]'") from error
    id_file = folder / "wandb_id.txt"
    if not (resumes and id_file.exists()):
        write_whole(id_file, secrets.token_hex(8).encode())
    return wandb.init(project=project, dir=str(folder), id=id_file.read_text(encoding="utf-8"), resume="allow")
