"""ExpertBank: named offsets of the singular values over the injected layers of a model, one row an expert."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hystar_fast.nn.expert_files import ExpertFile, read_experts, stamp_of, write_experts
from hystar_fast.nn.expert_rows import ExpertNames, names_of
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.inject import merge_

_ROUTED = re.compile(r"(^|\.)experts\.\d+(\.|$)")


class ExpertBank:
    """K named experts over the FastSVDLinear layers of a model: a vector of offsets for each layer and expert.

    ``W_k = u diag(s + delta_s_static + bank[k]) vh`` (Eq. 1). All experts share u and vh, so that an expert is r values
    a layer, and a batch may use any of them: ``with experts(model, rows): model(...)``.

    The vectors are a parameter ``delta_s_experts`` [K, r] of each layer, zeros at first. So they move, train and are
    saved with the model. They stay in float32 when the model is cast to half precision (float64 in a float64 model).

    Args:
        model: module with layers of :func:`inject`. It gets the parameters, and a hook that notes the size of a batch.
        names: the experts, in the order of their rows.

    Memory: 4 K r bytes a layer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model has no layers of inject, or a bank already (an inner module with one counts); a name is
            empty or there twice; or a layer is one of many that a router gives a part of the tokens.

    Source: Transformer² and SVFT, which train singular values for each task; Hystar, Eq. 1.

    Example:
        >>> import hystar_fast as hf
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> layers = hf.inject(model, "*")
        >>> bank = hf.ExpertBank(model, ["law", "code"])
        >>> bank["law"] = {"0": torch.randn(4), "2": torch.zeros(4)}
        >>> with hf.experts(model, ["law", None, "code"]):
        ...     y = model(torch.randn(3, 4))
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        from hystar_fast.nn.expert_forward import see_input_outside_graphs  # loads the compiler

        names = _checked_names(names)
        layers = _layers_without_bank(model)
        shared = ExpertNames(names)
        for layer in layers.values():
            zeros = torch.zeros(len(names), layer.rank, device=layer.u.device, dtype=layer.s.dtype)
            layer.delta_s_experts = nn.Parameter(zeros)
            layer._expert_names = shared
        model._expert_names = shared  # type: ignore[assignment]
        model.register_forward_pre_hook(see_input_outside_graphs, with_kwargs=True)
        self._hold(model, shared, layers)

    def _hold(self, model: nn.Module, shared: ExpertNames, layers: Mapping[str, FastSVDLinear]) -> None:
        self._model, self._shared = model, shared
        self.layers = dict(layers)

    @classmethod
    def of(cls, model: nn.Module) -> ExpertBank:
        """Return the bank that a model has, such as a deep copy of one with a bank."""
        shared = names_of(model)
        with_names = [module for module in model.modules() if getattr(module, "_expert_names", None) is shared]
        owner = with_names[0]
        if isinstance(owner, FastSVDLinear):
            raise ValueError(f"model must be the one that was given a bank, got a {type(model).__name__} inside it")
        layers = {n: m for n, m in owner.named_modules() if isinstance(m, FastSVDLinear)}
        bank = cls.__new__(cls)
        bank._hold(owner, shared, {n: m for n, m in layers.items() if m._expert_names is shared})
        return bank

    @property
    def names(self) -> tuple[str, ...]:
        """The experts in the order of their rows."""
        return self._shared.names

    def row(self, name: str) -> int:
        """Return the row of an expert."""
        return self._shared.row(name)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the vectors [K, r] of each layer, for an optimiser."""
        yield from self._banks().values()

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        """Return a copy of an expert's vectors [r] by the name of the layer."""
        row = self.row(name)
        return {layer: bank.detach()[row].clone() for layer, bank in self._values().items()}

    def __setitem__(self, name: str, vectors: Mapping[str, Tensor]) -> None:
        """Set an expert's vectors, one [r] for each layer of the bank."""
        row, banks = self.row(name), self._values()
        if not isinstance(vectors, Mapping):
            raise TypeError(f"vectors must be a Tensor for each name of a layer, got {type(vectors).__name__}")
        _check_layers("vectors", vectors, banks)
        for layer, bank in banks.items():
            if not isinstance(vectors[layer], Tensor) or not vectors[layer].is_floating_point():
                kind = getattr(vectors[layer], "dtype", type(vectors[layer]).__name__)
                raise TypeError(f"vectors must be floating-point Tensors, got {kind} for the layer {layer}")
            if vectors[layer].shape != bank.shape[1:]:
                needs, got = list(bank.shape[1:]), list(vectors[layer].shape)
                raise ValueError(f"vectors must be {needs} for the layer {layer}, got shape {got}")
        with torch.no_grad():
            for layer, bank in banks.items():
                bank[row].copy_(vectors[layer])

    def mix(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the weighted sum of experts, ``Σ weight[name] bank[name]``, as vectors by the name of the layer."""
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(f"weights must map names of experts to numbers, got {weights!r}")
        rows = [self.row(name) for name in weights]
        numbers = {name: _finite(name, weight) for name, weight in weights.items()}
        return {
            layer: (bank.detach()[rows] * bank.new_tensor(list(numbers.values()))[:, None]).sum(0)
            for layer, bank in self._values().items()
        }

    def merge_(self, expert: str | Mapping[str, float]) -> dict[str, FastSVDLinear]:
        """Fold one expert, or a mix of them, into plain layers, in place: the model then costs what it did at first.

        Returns:
            The replaced layers by name; ``hystar_fast.nn.unmerge_(model, layers)`` puts them back, with their experts.
        """
        self._banks()
        return merge_(self._model, self[expert] if isinstance(expert, str) else self.mix(expert))

    def save(self, path: str | Path, names: Iterable[str] | None = None) -> None:
        """Write experts (all, or those named) to a safetensors file, with the layers and a stamp of their weights.

        The file is written beside its place and renamed.
        """
        kept = self.names if names is None else _checked_names(names)
        rows = [self.row(name) for name in kept]
        vectors = {layer: bank.detach()[rows].cpu() for layer, bank in self._values().items()}
        stamps = {name: stamp_of(layer) for name, layer in self.layers.items()}
        write_experts(Path(path), ExpertFile(kept, vectors, stamps))

    @classmethod
    def load(cls, model: nn.Module, *paths: str | Path) -> ExpertBank:
        """Give a model a bank with the experts of one file or of several.

        Raises:
            OSError: there is no such file.
            ValueError: a file is damaged, has other layers or ranks than the model, or was trained on other weights
                (their singular values differ by more than 2e-6 of the largest, or their directions do); or two files
                have an expert of the same name. Then the model does not change.
        """
        if not paths:
            raise ValueError("paths must name at least one file, got none")
        layers = _layers_without_bank(model)
        stamps = {name: stamp_of(layer) for name, layer in layers.items()}
        files = [read_experts(Path(path)) for path in paths]
        for path, file in zip(paths, files, strict=True):
            _check_layers(f"the experts of {path}", file.vectors, layers)
            file.check_stamps(path, stamps)
        bank = cls(model, [name for file in files for name in file.names])
        for file in files:
            for place, name in enumerate(file.names):
                bank[name] = {layer: vectors[place] for layer, vectors in file.vectors.items()}
        return bank

    def detach(self) -> None:
        """Take the bank from the model, which is then as :func:`inject` left it."""
        from hystar_fast.nn.expert_forward import see_input_outside_graphs

        self._banks()
        for layer in self.layers.values():
            layer.delta_s_experts = layer._expert_names = None
        del self._model._expert_names
        hooks = self._model._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is see_input_outside_graphs]:
            del hooks[key]
            self._model._forward_pre_hooks_with_kwargs.pop(key, None)

    def _banks(self) -> dict[str, nn.Parameter]:
        banks = {name: layer.delta_s_experts for name, layer in self.layers.items()}
        if any(bank is None for bank in banks.values()):
            raise ValueError("bank must be one that its model has, got one that was detached")
        return {name: bank for name, bank in banks.items() if bank is not None}

    def _values(self) -> dict[str, nn.Parameter]:
        banks = self._banks()
        absent = [name for name, bank in banks.items() if bank.is_meta]
        if absent:
            raise ValueError(
                f"bank must have values to read or write, got the meta device in {absent[0]}, as where accelerate has "
                "offloaded them; do it before the dispatch"
            )
        return banks

    def __repr__(self) -> str:
        return f"ExpertBank({', '.join(map(repr, self.names))}; {len(self.layers)} layers)"


def _finite(name: str, weight: object) -> float:
    try:
        number = math.nan if isinstance(weight, str) else float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"weights must be finite numbers, got {weight!r} for {name}")
    return number


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names must be a list of names, got {type(names).__name__}")
    names = tuple(names)
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong or not names:
        raise ValueError(f"names must be strings that are not empty, got {repr(wrong[0]) if wrong else 'none'}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"names must be different, got {twice[0]!r} twice")
    return names


def _layers_without_bank(model: nn.Module) -> dict[str, FastSVDLinear]:
    """Return the layers of a model that may get a bank; raise where there are none, or one is in a bank."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, FastSVDLinear):
        raise ValueError("model must contain FastSVDLinear layers, got a FastSVDLinear itself; call it with delta_s")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FastSVDLinear)}
    if not layers:
        raise ValueError(f"model must have layers of inject, got {type(model).__name__}, which has none")
    held = [module._expert_names for module in layers.values() if module._expert_names is not None]
    if held:
        names = ", ".join(held[0].names)
        raise ValueError(f"model must have no bank yet, got one that has a bank of {names}; call its detach() first")
    routed = [name for name in layers if _ROUTED.search(name)]
    if routed:
        raise ValueError(
            f"model must give its layers the whole batch, got {routed[0]}, to which a router gives a part of the "
            "tokens; inject the other layers only"
        )
    return layers


def _check_layers(what: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    absent, unknown = ([n for n in a if n not in b] for a, b in ((wanted, found), (found, wanted)))
    if absent or unknown:
        differences = [*(f"no {name}" for name in absent), *(f"an unknown {name}" for name in unknown)]
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(f"{what} must be for the layers of the model, got {', '.join(differences[:5])}{more}")
