"""Factors of a weight by its singular value decomposition, cached on disk by the content of the weight."""

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

from hystar_fast.nn.weights import check_weight

_VERSION = 2
_LARGEST_CONDITION = 1e4
"""Up to here the squares of float64 lose less than float32 rounds."""


class SVDFactors(NamedTuple):
    """Leading r terms of ``weight = u diag(s) vh``: u [out, r] and vh [r, in] are orthonormal, s [r] descends."""

    u: Tensor
    s: Tensor
    vh: Tensor


def svd_factors(weight: Tensor, rank: int | None = None, *, cache_dir: str | Path | None = None) -> SVDFactors:
    """Return the leading singular values and vectors of a weight, from the cache where they are in it.

    ``W = U diag(s) Vᵀ``, the decomposition that Eq. 1 modulates.

    Args:
        weight: [out, in], any floating dtype, finite.
        rank: number of leading terms; ``None`` means all ``min(out, in)``.
        cache_dir: folder of the cache; ``None`` means ``$XDG_CACHE_HOME/hystar_fast/svd`` or
            ``~/.cache/hystar_fast/svd``. The name of a file is a hash of the weight's bytes, shape, dtype and rank, so
            a changed weight has another file. A damaged file is rebuilt with a warning. A folder that cannot be
            written to gives a warning.

    Returns:
        Factors on the weight's device, in float64 for a float64 weight and in float32 for every other dtype.
        They are always computed in float64, on the weight's device.
        Signs are fixed: the entry of largest magnitude in each column of u is positive.

    Gradients: none, the factors are detached.

    Cost: the first time one decomposition in float64, under a second for 3072 x 1024 on one core. Afterwards one read
    of ``4 r (out + in)`` bytes, and a hash of them and of the weight.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor, or ``rank`` is not an integer.
        ValueError: ``weight`` is not a matrix, is empty, or holds NaN or inf; or ``rank`` is out of range.

    Source: Hystar, Sec. 3.2.

    Example:
        >>> import tempfile
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, -2.0]])
        >>> svd_factors(weight, rank=1, cache_dir=tempfile.mkdtemp()).s
        tensor([3.])
    """
    rank = checked_rank(weight, rank)
    if weight.is_meta:
        raise ValueError("weight must have values, got a tensor on the meta device")
    host = weight.detach().cpu().contiguous()
    directory = Path(cache_dir) if cache_dir is not None else _default_directory()
    path = None if directory is None else directory / f"{_digest(host, rank)}.safetensors"
    factors = None if path is None else _read_factors(path, host, rank)
    if factors is None:
        factors = factorise(host, rank)
        if path is not None:
            _write_factors(path, factors)
    return SVDFactors(*(factor.to(weight.device) for factor in factors))


def factorise(weight: Tensor, rank: int | None = None) -> SVDFactors:
    """Compute the factors of :func:`svd_factors` without the cache."""
    rank = checked_rank(weight, rank)
    if not torch.isfinite(weight).all():
        count = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"weight must be finite, got NaN or inf in {count} of {weight.numel()} entries")
    is_tall = weight.shape[0] >= weight.shape[1]
    host = weight.detach() if weight.is_cuda else weight.detach().cpu()  # not every device has float64
    left, s, right = _decompose((host if is_tall else host.T).double(), is_exact=weight.dtype == torch.float64)
    u, vh = (left, right.T) if is_tall else (right, left.T)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    kept = (u * signs)[:, :rank], s[:rank], (vh * signs.T)[:rank]
    return SVDFactors(*(factor.to(weight.device, dtype).contiguous() for factor in kept))


def _decompose(matrix: Tensor, *, is_exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return u [m, n], s [n] and v [n, n] of a float64 matrix [m, n], m >= n.

    The eigenvectors of ``matrixᵀ matrix`` are v, and ``u diag(s) = matrix v``. This is three times as fast as an SVD,
    but an error of 1e-16 in the squares is one of ``1e-16 (s_max / s)²`` in u. Where that is more than float32's, or
    the factors stay in float64, the SVD of the small factor of a QR decomposition has full accuracy.
    """
    if not is_exact:
        v = torch.linalg.eigh(matrix.T @ matrix).eigenvectors
        scaled = matrix @ v
        s, order = torch.linalg.vector_norm(scaled, dim=0).sort(descending=True)
        if s[-1] * _LARGEST_CONDITION > s[0]:
            return scaled[:, order] / s, s, v[:, order]
    q, r = torch.linalg.qr(matrix)
    u, s, vh = torch.linalg.svd(r)
    return q @ u, s, vh.T


def checked_rank(weight: Tensor, rank: int | None) -> int:
    """Return ``rank``, or the full rank for ``None``; raise where ``weight`` cannot be factored with it."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor, got {kind}")
    check_weight(weight)
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
    with contextlib.suppress(RuntimeError):  # no home directory: no cache
        return (Path(configured) if configured else Path.home() / ".cache") / "hystar_fast" / "svd"
    return None


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor, in row-major order, as bytes."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(weight: Tensor, rank: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {weight.dtype} {tuple(weight.shape)} {rank}".encode())
    digest.update(bytes_of(weight))
    return digest.hexdigest()


def _checksum(path: Path, factors: SVDFactors) -> Tensor:
    """Hash the factors and the name of their file, so that a file which was given another name is rejected too."""
    digest = hashlib.sha256(path.stem.encode())
    for factor in factors:
        digest.update(bytes_of(factor))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _read_factors(path: Path, weight: Tensor, rank: int) -> SVDFactors | None:
    """Return the factors in `path`, or None where there is no file or a damaged one.

    The file is read whole and not mapped into memory, as another process may replace it.
    """
    out_features, in_features = weight.shape
    try:
        stored = load(path.read_bytes())
        factors = SVDFactors(stored["u"], stored["s"], stored["vh"])
        found = [tuple(factor.shape) for factor in factors]
        wanted = [(out_features, rank), (rank,), (rank, in_features)]
        if found != wanted:
            raise ValueError(f"u, s and vh must have shapes {wanted}, got {found}")
        if not torch.equal(stored["checksum"], _checksum(path, factors)):
            raise ValueError("checksum must be that of the factors, got another")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged file can raise anything
        warnings.warn(f"rebuilding the SVD cache file {path}, which cannot be used: {error}", stacklevel=3)
        return None
    return factors


def _write_factors(path: Path, factors: SVDFactors) -> None:
    """Write a temporary file and rename it, so that a reader always gets a whole file.

    Concurrent writers write the same.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save({**factors._asdict(), "checksum": _checksum(path, factors)}))
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"SVD factors are not cached, the next start computes them again: {error}", stacklevel=3)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
