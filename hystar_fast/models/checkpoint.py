"""Adapters on disk: ``adapter.safetensors`` (tensors) beside ``config.json`` (what they belong to).

Each file is written beside its place and moved there whole. The description holds a hash of the tensor file, so a
damaged file, or a pair torn apart by a crash between the two moves, is recognised and not loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

CONFIG_FILE = "config.json"
TENSOR_FILE = "adapter.safetensors"
FORMAT = "hystar_fast.adapter/1"
METHOD_FORMAT = "hystar_fast.method/1"
_SAMPLES = 1024


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """A hash of names, shapes, types and up to 1024 evenly spaced values of each tensor; None for meta tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        if tensor.is_meta:
            return None
        flat = tensor.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // _SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_adapter(
    directory: str | Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, kind: str = FORMAT
) -> None:
    """Write both files into `directory`, which is made if need be; `kind` is the format they say they have."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"directory must be a folder, {directory} is a file")
    directory.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    described = {"format": kind, **description, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    _replace(directory / TENSOR_FILE, content)
    _replace(directory / CONFIG_FILE, (json.dumps(described, indent=2) + "\n").encode())


def read_adapter(
    directory: str | Path, *, kinds: Sequence[str] = (FORMAT,)
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_adapter` wrote in one of the formats `kinds`: the description and the tensors.

    Raises:
        ValueError: when a file is missing, unreadable, of another format, or the two do not belong together.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (directory / name).is_file():
            raise ValueError(f"directory must hold {CONFIG_FILE} and {TENSOR_FILE}; {directory} has no {name}")
    try:
        description = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory / CONFIG_FILE} is corrupt: {error}") from error
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if not isinstance(description, dict) or found not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise ValueError(f"{directory / CONFIG_FILE} must have format {wanted}, it has {found!r}")
    if not all(isinstance(description.get(part), dict) for part in ("config", "fingerprints")):
        raise ValueError(f'{directory / CONFIG_FILE} must hold "config" and "fingerprints"')
    content = (directory / TENSOR_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != description.get("tensors_sha256"):
        raise ValueError(f"{directory / TENSOR_FILE} is corrupt or not from the save {CONFIG_FILE} describes")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{directory / TENSOR_FILE} is corrupt: {error}") from error
    return description, tensors


def check_tensors(found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """ValueError naming the first differences in names, shapes or kind between an adapter and the model it is for."""
    differences = [f"{name} is missing" for name in sorted(set(needed) - set(found))]
    differences += [f"{name} is not of this model" for name in sorted(set(found) - set(needed))]
    for name in sorted(set(found) & set(needed)):
        if found[name].shape != needed[name].shape:
            differences.append(f"{name} has shape {list(found[name].shape)}, needs {list(needed[name].shape)}")
        elif not found[name].is_floating_point():
            differences.append(f"{name} has type {found[name].dtype}, needs a floating one")
    if differences:
        rest = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"the adapter does not fit this model: {'; '.join(differences[:3])}{rest}")


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
