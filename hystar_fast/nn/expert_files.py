"""Files of experts: safetensors with the vectors, the names, and a stamp of the weights that they belong to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hystar_fast.nn.factors import bytes_of

if TYPE_CHECKING:
    from hystar_fast.nn.fast_svd_linear import FastSVDLinear

_FORMAT = "hystar_fast experts 1"
_VECTORS, _SPECTRUM, _PROBE = ".delta_s", ".s", ".probe"
_SPECTRUM_TOLERANCE = 2e-6  # of the largest; another machine's SVD differs by 1e-7, weights rounded to bfloat16 by 2e-5
_PROBE_TOLERANCE = 0.05  # of the norm; factors in bfloat16 differ by 2e-3, those of another weight by 1.4


@dataclass(frozen=True)
class Stamp:
    """What is known of a layer's weight: its singular values, and its directions seen from two fixed vectors."""

    spectrum: Tensor
    probe: Tensor

    def problem(self, other: Stamp) -> str | None:
        """Return how another stamp differs, or None where it is of the same weight."""
        if self.spectrum.shape != other.spectrum.shape:
            return f"rank {len(other.spectrum)} where the file has {len(self.spectrum)}"
        if not (self.spectrum - other.spectrum).abs().max() <= _SPECTRUM_TOLERANCE * self.spectrum.abs().max():
            return "other singular values"
        if self.probe.shape != other.probe.shape or not _distance(other.probe, self.probe) <= _PROBE_TOLERANCE:
            return "other singular vectors"
        return None


def stamp_of(layer: FastSVDLinear) -> Stamp:
    """Return the stamp of a layer; the signs of its singular vectors do not matter."""
    u, vh = layer.u.detach().cpu().float(), layer.vh.detach().cpu().float()
    spectrum = (layer.s + layer.delta_s_static).detach().cpu().float()  # what the offsets of an expert are added to
    return Stamp(spectrum, (_fixed(len(u)) @ u) * (vh @ _fixed(vh.shape[1])))


def _fixed(size: int) -> Tensor:
    """Return a vector that is the same on every machine, with entries that follow no pattern."""
    return (torch.arange(1, size + 1, dtype=torch.float64).square() * 0.6180339887498949).cos().float()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class ExpertFile:
    """The content of a file: experts, their vectors [K, r] by layer, and the stamp of each layer."""

    names: tuple[str, ...]
    vectors: Mapping[str, Tensor]
    stamps: Mapping[str, Stamp]

    def check_stamps(self, path: str | Path, stamps: Mapping[str, Stamp]) -> None:
        """Raise where a layer of a model is not that of the file."""
        for name, stamp in self.stamps.items():
            problem = stamp.problem(stamps[name])
            if problem:
                raise ValueError(
                    f"model must have the weights on which the experts of {path} were trained, got {problem} in "
                    f"{name}; load them in the same dtype, inject with the same rank, and keep the static offsets"
                )


def write_experts(path: Path, file: ExpertFile) -> None:
    """Write a file beside its place and rename it."""
    tensors = {name + _VECTORS: vectors.contiguous() for name, vectors in file.vectors.items()}
    for name, stamp in file.stamps.items():
        tensors |= {name + _SPECTRUM: stamp.spectrum, name + _PROBE: stamp.probe}
    names = json.dumps(file.names)
    metadata = {"format": _FORMAT, "names": names, "checksum": _checksum(names, tensors)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(save(tensors, metadata))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_experts(path: Path) -> ExpertFile:
    """Read a file; raise a ValueError where it is damaged or holds no experts."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file of experts, got {path}, which is none")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise ValueError(f"path must be a whole safetensors file, got {path}: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"path must be a file of ExpertBank.save, got {path} of format {metadata.get('format')!r}")
    if metadata.get("checksum") != _checksum(metadata.get("names", ""), tensors):
        raise ValueError(f"path must be a whole file of experts, got {path}, whose checksum is another")
    layers = [name.removesuffix(_VECTORS) for name in tensors if name.endswith(_VECTORS)]
    stamps = {name: Stamp(tensors[name + _SPECTRUM], tensors[name + _PROBE]) for name in layers}
    vectors = {name: tensors[name + _VECTORS] for name in layers}
    return ExpertFile(tuple(json.loads(metadata["names"])), vectors, stamps)


def _checksum(names: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(names.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()
