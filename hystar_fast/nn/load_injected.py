"""Loads what was saved of an injected model into a plain one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.inject import create_replacement, inject

_OFFSET, _EXPERTS = ".delta_s_static", ".delta_s_experts"


def load_injected(
    model: nn.Module, path: str | Path, *, keep_remainder: bool = True, cache_dir: str | Path | None = None
) -> list[str]:
    """Load what was saved of an injected model into a plain model of the same kind, in place.

    The layers, their ranks and their remainders are those in the file. A file that holds the whole model
    (``save_pretrained`` of transformers, or ``safetensors.torch.save_model``) replaces every weight and needs no SVD. A
    file without the factors, such as the offsets alone, keeps the weights of ``model``, which are factored again.

    Args:
        model: as it was before :func:`inject`; for the offsets alone with the weights that were injected.
        path: a ``.safetensors`` file, or a folder into which ``save_pretrained`` has written. It renames tensors of
            some models, such as mixtures of experts; call it with ``save_original_format=False``.
        keep_remainder: as it was given to inject; read only where the file has no factors.
        cache_dir: as in svd_factors.

    Returns:
        The names of the replaced layers, in the order of the model.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged, holds no layers of inject or holds experts, or the model has other layers or
            shapes. In the last case build the model again, as some of its layers may be replaced.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_model
        >>> model, again = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(4, 8))
        >>> names, path = inject(model, "*"), tempfile.mkdtemp() + "/model.safetensors"
        >>> save_model(model, path)
        >>> load_injected(again, path)
        ['0']
    """
    state = _read(Path(path))
    saved = [name.removesuffix(_OFFSET) for name in state if name.endswith(_OFFSET)]
    if not saved:
        raise ValueError(f"path must hold layers of inject, named *{_OFFSET}, got {path}, which has none")
    if any(name.endswith(_EXPERTS) for name in state):
        raise ValueError(
            f"path must hold a model without an ExpertBank, got {path}, which has experts: save them with bank.save, "
            "and the model after bank.detach; ExpertBank.load gives them to the loaded model"
        )
    layers = dict(model.named_modules(remove_duplicate=False))
    names = [name for name in layers if name in saved]
    absent = [name for name in saved if name not in layers]
    if absent:
        raise ValueError(f"model must have the layers of {path}, got {type(model).__name__}, which has no {absent[0]}")
    for name in names:
        rank = len(state[name + _OFFSET])
        if f"{name}.u" not in state:
            inject(model, name, rank, keep_remainder=keep_remainder, cache_dir=cache_dir)
        elif not isinstance(layers[name], FastSVDLinear):
            layer = create_replacement(_without_values(layers[name]), rank, f"{name}.base_weight" in state)
            device = next(layers[name].parameters()).device
            model.set_submodule(name, layer if device.type == "meta" else layer.to_empty(device=device))
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = "".join(str(error).splitlines()[1:2]).strip()
        raise ValueError(f"model must have the shapes of {path}, got {type(model).__name__}: {mismatch}") from error
    if any(f"{name}.u" in state for name in names):
        missing = _not_tied(model, missing)
    else:
        missing = [name for name in missing if name.endswith(_OFFSET)]
    if missing or unexpected:
        found = ", ".join([*(f"no {name}" for name in missing), *(f"an unknown {name}" for name in unexpected)][:5])
        raise ValueError(
            f"path must hold a model of the kind {type(model).__name__}, got {path} with {found}; "
            "where transformers has renamed tensors, save with save_pretrained(..., save_original_format=False)"
        )
    return names


def _without_values(layer: nn.Module) -> nn.Module:
    """Return a copy of `layer` on the meta device; its replacement costs no SVD."""
    bare = copy.copy(layer)
    bare._parameters = {
        name: None if value is None else nn.Parameter(value.detach().to("meta"), requires_grad=False)
        for name, value in layer._parameters.items()
    }
    return bare


def _not_tied(model: nn.Module, missing: list[str]) -> list[str]:
    """Return the names of `missing` whose tensor was not loaded under another name, as that of a tied head is."""
    values: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    loaded = {id(value) for name, value in values.items() if name not in missing}
    return [name for name in missing if id(values[name]) not in loaded]


def _read(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"path must hold model.safetensors or its parts, got {path}, which has none")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"path must be a whole safetensors file, got {file}: {error}") from error
    return state
