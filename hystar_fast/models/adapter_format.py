"""Adapters on disk: tensors in ``adapter.safetensors``, their description in ``config.json``.

Each file is replaced as a whole. The description holds a hash of the tensor file and a checksum of itself: one changed
bit in either file is found, and so are two files of different saves after a crash between their renames. Adapters of
version 0.1.0 have no checksum of the description; they are read without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hystar_fast.data.whole_files import opened_json, sealed_json, write_whole
from hystar_fast.models.config import HystarConfig
from hystar_fast.nn.factors import bytes_of

CONFIG_FILE = "config.json"
TENSOR_FILE = "adapter.safetensors"
FORMAT = "hystar_fast.adapter/1"
METHOD_FORMAT = "hystar_fast.method/1"
DELTA_FORMAT = "hystar_fast.method-delta/1"  # tensors in bfloat16 are differences from the backbone's own weights
FORMATS = (FORMAT, METHOD_FORMAT, DELTA_FORMAT)
Hashed: TypeAlias = "dict[tuple[Any, ...], tuple[Tensor, bytes]]"
_CHUNK = 1 << 20  # bytes


def fingerprint(tensors: Iterable[tuple[str, Tensor]], hashed: Hashed | None = None) -> str | None:
    """Return a hash of the names, shapes, types and every value of `tensors`; None where one is on the meta device.

    Args:
        tensors: names and tensors, as a state dict has them.
        hashed: a dictionary for several calls, so that tensors which they share are hashed once.

    Cost: one read of every value, in chunks that are spread over all cores: 1.4 s for the 1.71 GB of ViT-L/14 on one
    core.
    """
    hashed = {} if hashed is None else hashed
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for name, tensor in tensors:
            if tensor.is_meta:
                return None
            flat = tensor.detach().reshape(-1)
            header = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in hashed:  # holding the tensor keeps its memory from being used for another
                hashed[place] = (tensor, _hash_in_chunks(bytes_of(flat), pool))
            digest.update(hashlib.sha256(header).digest() + hashed[place][1])
    return digest.hexdigest()


def are_same_weights(trained_on: str | None, found: str | None) -> bool:
    """Compare the fingerprint in an adapter with that of the loaded weights; True unless both are known and differ."""
    return trained_on is None or found is None or trained_on == found


def _hash_in_chunks(content: memoryview, pool: Executor) -> bytes:
    """Hash chunks in several threads, as hashlib releases the lock of the interpreter, and then their hashes."""
    chunks = [content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK)]
    compute = map if len(chunks) < 2 else pool.map
    return hashlib.sha256(b"".join(compute(lambda chunk: hashlib.sha256(chunk).digest(), chunks))).digest()


def write_adapter(
    directory: str | Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, kind: str = FORMAT
) -> None:
    """Write both files into `directory`, which is created if it does not exist; `kind` is their format.

    Raises:
        ValueError: `directory` is a file.
        FloatingPointError: a tensor is not finite; nothing is written.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"directory must be a folder, got the file {directory}")
    broken = not_finite(tensors.items())
    if broken:
        raise FloatingPointError(f"parameters must be finite to be saved, got NaN or inf in {broken}")
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    described = {"format": kind, **description, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    write_whole(directory / TENSOR_FILE, content)
    write_whole(directory / CONFIG_FILE, sealed_json(described))


def change_description(directory: str | Path, entries: Mapping[str, Any]) -> None:
    """Add entries to the description of an adapter, in one move.

    Raises:
        ValueError: as `read_description`.
    """
    described = {**read_description(directory), **entries}
    write_whole(Path(directory) / CONFIG_FILE, sealed_json(described))


def read_adapter(
    directory: str | Path, *, kinds: Sequence[str] = (FORMAT,)
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the description and the tensors that :func:`write_adapter` wrote, in one of the formats `kinds`.

    Raises:
        ValueError: a file is missing, corrupt or of another format, the two are of different saves, or a tensor is not
            finite.
    """
    directory = Path(directory)
    description = read_description(directory, kinds=kinds)
    content = (directory / TENSOR_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != description.get("tensors_sha256"):
        raise ValueError(f"{directory / TENSOR_FILE} is corrupt or not from the save that {CONFIG_FILE} describes")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{directory / TENSOR_FILE} is corrupt: {error}") from error
    broken = not_finite(tensors.items())
    if broken:
        raise ValueError(f"{directory / TENSOR_FILE} must hold finite parameters, got NaN or inf in {broken}")
    return description, tensors


def read_description(directory: str | Path, *, kinds: Sequence[str] = FORMATS) -> dict[str, Any]:
    """Read the description alone, without the tensors.

    Raises:
        ValueError: a file is missing, or the description is corrupt or of another format.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (directory / name).is_file():
            raise ValueError(
                f"directory must hold {CONFIG_FILE} and {TENSOR_FILE}, got {directory}, which has no {name}"
            )
    description = opened_json((directory / CONFIG_FILE).read_bytes(), str(directory / CONFIG_FILE))
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if not isinstance(description, dict) or found not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise ValueError(f"{directory / CONFIG_FILE} must have format {wanted}, got {found!r}")
    if not all(isinstance(description.get(part), dict) for part in ("config", "fingerprints")):
        raise ValueError(f'{directory / CONFIG_FILE} must hold "config" and "fingerprints", got {sorted(description)}')
    try:
        HystarConfig.from_dict(description["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG_FILE}: {error}") from error
    return description


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity; None if all are finite.

    Tensors on the meta device and of 8 bits are not looked at.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0 or tensor.element_size() == 1:
            continue
        if not all(end.isfinite() for end in tensor.detach().aminmax()):  # NaN reaches both ends
            return name
    return None


def check_tensors(found: Mapping[str, Tensor], needed: Mapping[str, Tensor], model: str = "this model") -> None:
    """Raise a ValueError with the first differences where the tensors of an adapter do not fit the model."""
    differences = [f"{name} is missing" for name in sorted(set(needed) - set(found))]
    differences += [f"{name} is not of this model" for name in sorted(set(found) - set(needed))]
    for name in sorted(set(found) & set(needed)):
        if found[name].shape != needed[name].shape:
            differences.append(f"{name} must have shape {list(needed[name].shape)}, got {list(found[name].shape)}")
        elif not found[name].is_floating_point():
            differences.append(f"{name} must have a floating type, got {found[name].dtype}")
    if differences:
        rest = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        found_differences = "; ".join(differences[:3]) + rest
        raise ValueError(f"directory must hold an adapter of {model}, got other tensors: {found_differences}")
