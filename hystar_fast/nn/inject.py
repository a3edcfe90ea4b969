"""Put FastSVDLinear into somebody else's model, and take it out again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias, TypeVar

from torch import nn

from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.factors import checked_rank
from hystar_fast.nn.fast_svd_linear import FastSVDLinear

Target: TypeAlias = "str | re.Pattern[str]"
_Layer = TypeVar("_Layer", bound=nn.Module)
Targets: TypeAlias = "Target | Collection[Target] | Callable[[str, nn.Linear], bool]"

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def inject(
    model: nn.Module,
    targets: Targets,
    rank: int | None = None,
    *,
    keep_remainder: bool = True,
    cache_dir: str | Path | None = None,
) -> list[str]:
    """Replace matching nn.Linear layers of any model by FastSVDLinear, in place.

    Each layer equals the one it replaces until its ``delta_s_static`` is trained (Eq. 1). Only the replaced weights
    and biases are frozen; freeze the rest first with ``model.requires_grad_(False)`` to train the offsets alone.

    Offsets per sample (``delta_s``) reach a layer as an argument only, ``layer(x, delta_s)``, from a forward that
    passes them on. There is no way to set a style on the model before its forward: that gives silently wrong
    gradients under checkpointing and mixes styles across threads.

    Args:
        model: any module; a layer it reaches under several names is replaced under all of them, once.
        targets: which linear layers. A string is a name or glob, matched against the whole dotted name or its end
            (``"mlp.fc1"``, ``"blocks.*.fc?"``, ``"*"`` for all); a compiled pattern is searched in the name; a list
            takes the union; a callable gets (name, layer) and decides.
        rank: how many leading singular values move, ``None`` for all of each layer.
        keep_remainder: as in FastSVDLinear.
        cache_dir: as in svd_factors.

    Returns:
        The names replaced, in the model's order. Layers that are FastSVDLinear already match but are left alone.

    Cost: one SVD a layer the first time, read from disk afterwards.

    Raises:
        TypeError: ``model`` or ``targets`` has the wrong type.
        ValueError: a target matches no linear layer (close names are listed), or a match cannot be replaced: the
            root itself, nn.MultiheadAttention's out_proj (its weight is read directly; see SVDAttention), a
            parametrised weight, a weight tied to another module, a subclass with a forward of its own. Nothing is
            replaced then.

    Example:
        >>> inject(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), "*")
        ['0', '2']
    """
    _check_model(model)
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, (nn.Linear, FastSVDLinear))}
    chosen = {layers[name] for name in _matching(layers, targets)}
    linears = {n: m for n, m in layers.items() if m in chosen and isinstance(m, nn.Linear)}
    _check_replaceable(model, linears, rank)
    replacements: dict[nn.Module, FastSVDLinear] = {}
    for name, linear in linears.items():
        if linear not in replacements:
            layer = FastSVDLinear.from_linear(linear, rank, keep_remainder, cache_dir=cache_dir)
            replacements[linear] = _with_hooks_of(linear, layer)
        model.set_submodule(name, replacements[linear])
    return list(linears)


def merge_(model: nn.Module) -> dict[str, FastSVDLinear]:
    """Replace every FastSVDLinear of ``model`` by an nn.Linear with its static offset folded in, in place.

    The packed projection of an SVDAttention stays, since it takes offsets per sample.

    Returns:
        The layers taken out, by name: :func:`unmerge_` puts them back. Dropping the dictionary frees their memory.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` is itself a FastSVDLinear (use its ``merge()``).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> names = inject(model, "*")
        >>> layers = merge_(model)
        >>> model, list(layers)
        (Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
        ), ['0'])
    """
    _check_model(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(model, FastSVDLinear):
        raise ValueError("model must contain FastSVDLinear layers, but is one: use model.merge()")
    layers = {n: m for n, m in modules.items() if isinstance(m, FastSVDLinear)}
    layers = {n: m for n, m in layers.items() if not isinstance(modules[n.rpartition(".")[0]], SVDAttention)}
    merged = {layer: _with_hooks_of(layer, layer.merge()) for layer in dict.fromkeys(layers.values())}
    for name, layer in layers.items():
        model.set_submodule(name, merged[layer])
    return layers


def unmerge_(model: nn.Module, layers: Mapping[str, FastSVDLinear]) -> None:
    """Put the layers that :func:`merge_` took out of ``model`` back, in place."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _with_hooks_of(old: nn.Module, new: _Layer) -> _Layer:
    """Share the hook dictionaries themselves, so that handles a user holds still remove their hooks."""
    for name in _HOOKS:
        new.__dict__[name] = old.__dict__[name]
    return new


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def _matching(layers: Mapping[str, nn.Module], targets: Targets) -> list[str]:
    """The names of `layers` that any target picks; every target must pick one."""
    if callable(targets):
        names = [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and targets(name, layer)]
        if not names:
            raise ValueError(f"targets must pick a linear layer, but {targets} picked none of {_some(layers)}")
        return names
    matched: list[str] = []
    for target in targets if isinstance(targets, Collection) and not isinstance(targets, str) else [targets]:
        if isinstance(target, re.Pattern):
            names, written = [name for name in layers if target.search(name)], target.pattern
        elif isinstance(target, str):
            names, written = [n for n in layers if fnmatchcase(n, target) or fnmatchcase(n, f"*.{target}")], target
        else:
            raise TypeError(f"targets must be names, patterns or a callable, got {type(target).__name__}")
        if not names:
            raise ValueError(f"targets must match linear layers, {written!r} matches none; {_near(written, layers)}")
        matched += names
    if not matched:
        raise ValueError("targets must name at least one layer, got an empty list")
    return matched


def _near(target: str, names: Mapping[str, nn.Module]) -> str:
    """Names that `target` may have meant, compared over as many trailing parts as it has."""
    parts = target.count(".") + 1
    ends = {name: ".".join(name.split(".")[-parts:]) for name in names}
    close = difflib.get_close_matches(target, set(ends.values()), n=5, cutoff=0.5)
    near = {name: None for name, end in ends.items() if end in close}
    return f"close names: {_some(near)}" if near else f"the model has {_some(names)}"


def _some(names: Mapping[str, object], count: int = 8) -> str:
    if not names:
        return "no linear layers"
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(list(names)[:count]) + more


def _check_replaceable(model: nn.Module, linears: Mapping[str, nn.Linear], rank: int | None) -> None:
    owners: dict[nn.Parameter, set[str]] = {}
    for owner, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(owner)
    problems = {name: _why_not(model, name, linear, rank, owners) for name, linear in linears.items()}
    found = [f"{name or 'the model itself'} ({problem})" for name, problem in problems.items() if problem]
    if found:
        raise ValueError(f"targets match layers that cannot be replaced, so none was: {'; '.join(found)}")


def _why_not(
    model: nn.Module, name: str, linear: nn.Linear, rank: int | None, owners: Mapping[nn.Parameter, set[str]]
) -> str | None:
    parent = model.get_submodule(name.rpartition(".")[0])
    if not name:
        return "use FastSVDLinear.from_linear(model)"
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight instead of calling the layer; see SVDAttention"
    if type(linear).forward is not nn.Linear.forward or "forward" in vars(linear):
        return f"its {type(linear).__name__} has a forward of its own"
    weight = linear._parameters.get("weight")
    if weight is None or isinstance(weight, nn.UninitializedParameter):
        return "its weight is parametrised or not initialised yet"
    if len(owners[weight]) > 1:
        return f"its weight is shared by {' and '.join(sorted(owners[weight]))}; untie them first"
    try:
        checked_rank(weight, rank)
    except (TypeError, ValueError) as error:
        return str(error)
    if not weight.is_meta and not weight.isfinite().all():
        return "its weight holds NaN or inf"
    return None
