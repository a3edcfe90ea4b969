"""Replace the linear layers of any model by FastSVDLinear, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.conv1d import FastSVDConv1D, is_conv1d
from hystar_fast.nn.factors import checked_rank
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.in_threads import map_in_threads
from hystar_fast.nn.weights import check_weight

Target: TypeAlias = "str | re.Pattern[str]"
_Layer = TypeVar("_Layer", bound=nn.Module)
Targets: TypeAlias = "Target | Collection[Target] | Callable[[str, Any], bool]"

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def inject(
    model: nn.Module,
    targets: Targets,
    rank: int | None = None,
    *,
    keep_remainder: bool = True,
    cache_dir: str | Path | None = None,
) -> list[str]:
    """Replace matching linear layers of any model by FastSVDLinear, in place: nn.Linear, and transformers' Conv1D.

    Each layer equals the one that it replaces until its ``delta_s_static`` is trained (Eq. 1). Only the replaced
    weights and biases are frozen. To train the offsets alone, call ``model.requires_grad_(False)`` first.

    Offsets for each sample (``delta_s``) reach a layer as an argument, ``layer(x, delta_s)``, so the model's own
    forward must pass them on. Where it cannot, an :class:`ExpertBank` holds named offsets, and ``with experts(model,
    rows)`` chooses one for each request.

    Args:
        model: any module. A layer that is in it under several names is replaced once, under all of them.
        targets: the linear layers to replace. A string is a name or a glob and is compared with the whole dotted name
            and with its end (``"mlp.fc1"``, ``"blocks.*.fc?"``, ``"*"`` for all). A compiled pattern is searched for in
            the name. A list takes what any of its items matches. A callable gets (name, layer) and returns a bool; the
            layer is an nn.Linear or a Conv1D.
        rank: number of leading singular values that take offsets; ``None`` means all of each layer.
        keep_remainder: as in FastSVDLinear.
        cache_dir: as in svd_factors.

    Returns:
        The names of the replaced layers, in the order of the model. A target may match layers that are FastSVDLinear
        already; they are not replaced.

    Cost: one SVD for each layer the first time, one read from disk afterwards.

    Raises:
        TypeError: ``model`` or ``targets`` has the wrong type.
        ValueError: a target matches no linear layer (the message lists close names), or it matches one that cannot be
            replaced: the model itself, the out_proj of nn.MultiheadAttention (see SVDAttention), experts whose weights
            are stacked in one parameter, a parametrised weight, a weight that another module shares, a subclass with
            its own forward, or a weight that is no plain tensor in float16, bfloat16, float32 or float64 (sharded,
            nested, quantised, float8). Then nothing is replaced.

    Example:
        >>> inject(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), "*")
        ['0', '2']
    """
    _check_model(model)
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if _is_linear(m) or _has_stacked_experts(m)}
    chosen = {layers[name] for name in _matching_names(layers, targets)}
    linears = {n: m for n, m in layers.items() if m in chosen and not isinstance(m, FastSVDLinear)}
    _check_replaceable(model, linears, rank)

    def replacement(linear: nn.Module) -> FastSVDLinear:
        return create_replacement(linear, rank, keep_remainder, cache_dir=cache_dir)

    unique = list(dict.fromkeys(linears.values()))
    replacements = dict(zip(unique, map_in_threads(replacement, unique), strict=True))
    for name, linear in linears.items():
        model.set_submodule(name, replacements[linear])
    return list(linears)


def create_replacement(
    linear: nn.Module, rank: int | None, keep_remainder: bool = True, *, cache_dir: str | Path | None = None
) -> FastSVDLinear:
    """Return the layer that takes the place of one linear layer, with its hooks."""
    build: Any = FastSVDConv1D.from_conv1d if is_conv1d(linear) else FastSVDLinear.from_linear
    return _share_hooks(linear, build(linear, rank, keep_remainder, cache_dir=cache_dir))


def merge_(model: nn.Module, offsets: Mapping[str, Tensor] | None = None) -> dict[str, FastSVDLinear]:
    """Replace every FastSVDLinear of ``model`` by a layer of the kind it was built from, with its offset, in place.

    The packed projection of an SVDAttention is not replaced, as it takes offsets for each sample.

    Args:
        model: module with FastSVDLinear layers.
        offsets: offsets [r] by the name of a layer, which are added to the static ones.

    Returns:
        The replaced layers by name, for :func:`unmerge_`. Their memory is freed with this dictionary.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` is itself a FastSVDLinear; use its ``merge()``. Or an offset names no layer to merge.

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
        raise ValueError("model must contain FastSVDLinear layers, got a FastSVDLinear itself; use model.merge()")
    layers = {n: m for n, m in modules.items() if isinstance(m, FastSVDLinear)}
    layers = {n: m for n, m in layers.items() if not isinstance(modules[n.rpartition(".")[0]], SVDAttention)}
    added = {layers[name]: offset for name, offset in (offsets or {}).items() if name in layers}
    if len(added) < len(offsets or {}):
        absent = [name for name in offsets or {} if name not in layers]
        raise ValueError(f"offsets must name layers that can be merged, got {', '.join(absent)}")
    merged = {layer: _share_hooks(layer, layer.merge(added.get(layer))) for layer in dict.fromkeys(layers.values())}
    for name, layer in layers.items():
        model.set_submodule(name, merged[layer])
    return layers


def unmerge_(model: nn.Module, layers: Mapping[str, FastSVDLinear]) -> None:
    """Put back the layers that :func:`merge_` replaced in ``model``, in place."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _share_hooks(old: nn.Module, new: _Layer) -> _Layer:
    """Give `new` the hook dictionaries of `old`, so that the handles of hooks still remove them, and return `new`."""
    for name in _HOOKS:
        new.__dict__[name] = old.__dict__[name]
    return new


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, FastSVDLinear)) or is_conv1d(module)


def _has_stacked_experts(module: nn.Module) -> bool:
    """Return True for a mixture of experts that multiplies with slices of its own parameters, and has no layers."""
    kind, dims = type(module).__name__.lower(), max((p.dim() for p in module.parameters(recurse=False)), default=0)
    return dims >= (2 if "expert" in kind else 3) and ("expert" in kind or "moe" in kind)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def _matching_names(layers: Mapping[str, nn.Module], targets: Targets) -> list[str]:
    """Return the names of `layers` that any target matches; raise where a target matches none."""
    if callable(targets):
        linears = {n: m for n, m in layers.items() if _is_linear(m) and not isinstance(m, FastSVDLinear)}
        names = [name for name, layer in linears.items() if targets(name, layer)]
        if not names:
            raise ValueError(f"targets must match linear layers, got {targets}, which matches none of {_list(layers)}")
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
            close = _close_names(written, layers)
            raise ValueError(f"targets must match linear layers, got {written!r}, which matches none; {close}")
        matched += names
    if not matched:
        raise ValueError("targets must name at least one layer, got none")
    return matched


def _close_names(target: str, names: Mapping[str, nn.Module]) -> str:
    """List the names that are close to `target`, which is compared with as many of their last parts as it has."""
    parts = target.count(".") + 1
    ends = {name: ".".join(name.split(".")[-parts:]) for name in names}
    close = difflib.get_close_matches(target, set(ends.values()), n=5, cutoff=0.5)
    found = {name: None for name, end in ends.items() if end in close}
    return f"close names: {_list(found)}" if found else f"the model has {_list(names)}"


def _list(names: Mapping[str, object], count: int = 8) -> str:
    if not names:
        return "no linear layers"
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(list(names)[:count]) + more


def _check_replaceable(model: nn.Module, linears: Mapping[str, nn.Module], rank: int | None) -> None:
    owners: dict[nn.Parameter, set[str]] = {}
    for owner, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(owner)
    rejected: dict[str, dict[str, None]] = {}
    for name, linear in linears.items():
        reason = _reason_against(model, name, linear, rank, owners)
        if reason:
            rejected.setdefault(reason, {})[name or "the model itself"] = None
    if rejected:
        found = [f"{_list(names)} ({reason})" for reason, names in rejected.items()]
        raise ValueError(f"targets must match layers that can be replaced, got {'; '.join(found)}; none was replaced")


def _reason_against(
    model: nn.Module, name: str, linear: nn.Module, rank: int | None, owners: Mapping[nn.Parameter, set[str]]
) -> str | None:
    """Return why a layer cannot be replaced, or None where it can."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if not name:
        return "use FastSVDLinear.from_linear(model)"
    if not _is_linear(linear):
        stacked = ", ".join(f"{n} {list(p.shape)}" for n, p in linear.named_parameters(recurse=False))
        return (
            f"{type(linear).__name__} keeps its experts in one parameter ({stacked}) and calls no linear layer; "
            'name the other layers, such as "self_attn.*", or give each expert an nn.Linear of its own first'
        )
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight instead of calling the layer; see SVDAttention"
    has_own_forward = type(linear).forward is not nn.Linear.forward and not is_conv1d(linear)
    if has_own_forward or "forward" in vars(linear):
        return f"its {type(linear).__name__} has its own forward"
    weight = linear._parameters.get("weight")
    if weight is None or isinstance(weight, nn.UninitializedParameter):
        return "its weight is parametrised or not initialised yet"
    if len(owners[weight]) > 1:
        return f"its weight is shared by {' and '.join(sorted(owners[weight]))}; copy it first"
    try:
        check_weight(weight)
        checked_rank(weight, rank)
    except (TypeError, ValueError) as error:
        return str(error)
    if not weight.is_meta and not weight.isfinite().all():
        return "its weight holds NaN or inf"
    return None
