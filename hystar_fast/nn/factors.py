"""Singular value factors of a weight, cached on disk by the weight's content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

_VERSION = 1


class SVDFactors(NamedTuple):
    """The leading r terms of ``weight = u diag(s) vh``: u [out, r] and vh [r, in] orthonormal, s [r] descending."""

    u: Tensor
    s: Tensor
    vh: Tensor


def svd_factors(weight: Tensor, rank: int | None = None, *, cache_dir: str | Path | None = None) -> SVDFactors:
    """Factor a weight into its leading singular values and vectors, once per content.

    ``W = U diag(s) Vᵀ``, the decomposition behind Eq. 1.

    Args:
        weight: [out, in], any floating dtype, finite.
        rank: how many leading terms to keep; ``None`` keeps all ``min(out, in)``.
        cache_dir: where to keep the factors; ``None`` means ``$XDG_CACHE_HOME/hystar_fast/svd`` or
            ``~/.cache/hystar_fast/svd``. A file is named by a hash of the weight's bytes, shape, dtype and rank, so
            it never goes stale; a damaged one is rebuilt with a warning, an unwritable directory only warns.

    Returns:
        Factors on the weight's device, in float64 for a float64 weight and in float32 for every other dtype.
        They are computed in float64 on the CPU, whatever the weight's device, so every machine finds the same file.
        Signs are fixed: the entry of largest magnitude in each column of u is positive.

    Gradients: none, the factors are detached.

    Cost: one float64 SVD the first time (about a second for 3072 x 1024 on two cores), afterwards one read of
    ``4 r (out + in)`` bytes and one hash of the weight.

    Raises:
        TypeError: ``weight`` is no floating-point tensor or ``rank`` no integer.
        ValueError: ``weight`` is not a non-empty matrix or holds NaN or inf, or ``rank`` is out of range.

    Source: Hystar, Sec. 3.2.

    Example:
        >>> import tempfile
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, -2.0]])
        >>> svd_factors(weight, rank=1, cache_dir=tempfile.mkdtemp()).s
        tensor([3.])
    """
    rank = checked_rank(weight, rank)
    host = weight.detach().cpu().contiguous()
    directory = Path(cache_dir) if cache_dir is not None else _default_directory()
    path = None if directory is None else directory / f"{_digest(host, rank)}.safetensors"
    factors = None if path is None else _read(path, host, rank)
    if factors is None:
        factors = factorise(host, rank)
        if path is not None:
            _write(path, factors)
    return SVDFactors(*(factor.to(weight.device) for factor in factors))


def factorise(weight: Tensor, rank: int | None = None) -> SVDFactors:
    """The same factors as :func:`svd_factors`, computed afresh and not cached."""
    rank = checked_rank(weight, rank)
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"weight must be finite, but {bad} of its {weight.numel()} entries are NaN or inf")
    u, s, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    kept = (u * signs)[:, :rank], s[:rank], (vh * signs.T)[:rank]
    return SVDFactors(*(factor.to(weight.device, dtype).contiguous() for factor in kept))


def checked_rank(weight: Tensor, rank: int | None) -> int:
    """``rank`` with its default filled in, after checking it against a weight that can be factored."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        what = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor, got {what}")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty matrix [out, in], got shape {tuple(weight.shape)}")
    full = min(weight.shape)
    if rank is None:
        return full
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"rank must be an int or None, got {type(rank).__name__}")
    if not 1 <= rank <= full:
        raise ValueError(f"rank must lie in 1..{full} for a weight of shape {tuple(weight.shape)}, got {rank}")
    return rank


def _default_directory() -> Path | None:
    configured = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # a user without a home directory has no cache
        return (Path(configured) if configured else Path.home() / ".cache") / "hystar_fast" / "svd"
    return None


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor, in row-major order, as bytes."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(weight: Tensor, rank: int) -> str:
    digest = hashlib.blake2b(f"{_VERSION} {weight.dtype} {tuple(weight.shape)} {rank}".encode(), digest_size=20)
    digest.update(bytes_of(weight))
    return digest.hexdigest()


def _checksum(path: Path, factors: SVDFactors) -> Tensor:
    """Of the factors and of the name they go by, so that a file under another file's name is found out too."""
    digest = hashlib.blake2b(path.stem.encode(), digest_size=20)
    for factor in factors:
        digest.update(bytes_of(factor))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _read(path: Path, weight: Tensor, rank: int) -> SVDFactors | None:
    """The factors in `path`, or None when there are none to trust. Read whole, never mapped: the file may change."""
    out_features, in_features = weight.shape
    try:
        stored = load(path.read_bytes())
        factors = SVDFactors(stored["u"], stored["s"], stored["vh"])
        if [factor.shape for factor in factors] != [(out_features, rank), (rank,), (rank, in_features)]:
            raise ValueError("shapes do not match")
        if not torch.equal(stored["checksum"], _checksum(path, factors)):
            raise ValueError("checksum does not match")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever a damaged file raises, the weight itself is at hand to rebuild it from
        warnings.warn(f"rebuilding the SVD cache file {path}, which cannot be used: {error}", stacklevel=3)
        return None
    return factors


def _write(path: Path, factors: SVDFactors) -> None:
    """Write whole or not at all: concurrent writers each replace the file by the same content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save({**factors._asdict(), "checksum": _checksum(path, factors)}))
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"SVD factors are not cached, the next start computes them again: {error}", stacklevel=3)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
