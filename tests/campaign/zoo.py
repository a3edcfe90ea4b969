"""Inject into public architectures: one row each, with every layer that is replaced and every one that is refused."""

from __future__ import annotations

import copy
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import hystar_fast as hf
from hystar_fast.nn.conv1d import is_conv1d
from hystar_fast.nn.inject import merge_
from tests.campaign import zoo_timm, zoo_transformers, zoo_vision
from tests.campaign.rows import Row
from tests.support.tolerance import relative_error

Arguments: TypeAlias = "dict[str, Any]"
_CLOSE = 1e-4  # relative, in float32: deep models add up the rounding of every layer
_GRADIENT = 1e-3


class Fault(Exception):
    """A check that did not hold."""


def zoo(share: float = 1.0) -> list[Row]:
    """Run the architectures at every (1 / share)-th place of the list, the same ones for the same share."""
    builders = {**zoo_timm.builders(), **zoo_vision.builders(), **zoo_transformers.builders()}
    return [
        run_case(name, build)
        for place, (name, build) in enumerate(builders.items())
        if int((place + 1) * share) > int(place * share)
    ]


def run_case(name: str, build: Callable[[], tuple[nn.Module, Arguments]]) -> Row:
    """Build one architecture, inject into every linear layer of it that takes it, and check it."""
    torch.manual_seed(zlib.crc32(name.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, arguments = build()
        plain.requires_grad_(True).eval()
        model = copy.deepcopy(plain).requires_grad_(False)
        replaced, refused = inject_what_fits(model)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.items())
        if not replaced:
            return Row("zoo", name, "refused", reasons or "no linear layer")
        try:
            notes = check(plain, model, replaced, arguments)
        except Exception as error:  # whatever a model raises is a fault of this case alone
            if "FastSVDLinear.weight must not be" in str(error):
                return Row("zoo", name, "refused", f"its own code writes into a weight: {error}"[:300])
            kind = "" if isinstance(error, Fault) else f"{type(error).__name__}: "
            return Row("zoo", name, "failed", f"{kind}{error}".splitlines()[0][:300])
    more = [f"refused {reasons}"] if reasons else []
    return Row("zoo", name, "passed", "; ".join([f"{len(replaced)} layers", *notes, *more]))


def inject_what_fits(model: nn.Module) -> tuple[list[str], dict[str, int]]:
    """Inject into every linear layer by its name; return the replaced ones, and the reasons against others, counted."""
    replaced, refused = [], dict[str, int]()
    for name, _ in list(model.named_modules()):
        try:
            replaced += hf.inject(model, re.compile(f"^{re.escape(name)}$"))
        except ValueError as error:
            if "which matches none" not in str(error):  # no linear layer
                reason = str(error).partition(" (")[2].rpartition(");")[0]
                refused[reason] = refused.get(reason, 0) + 1
    return replaced, refused


def check(plain: nn.Module, model: nn.Module, replaced: list[str], arguments: Arguments) -> list[str]:
    """Raise a Fault where the injected model differs from the plain one; return what torch itself cannot do with it."""
    expected = outputs(plain, arguments)
    close(outputs(model, arguments), expected, "zero offset")
    check_gradients(plain, model, replaced, arguments)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for name in replaced:
            layer: Any = model.get_submodule(name)
            layer.delta_s_static.normal_(std=0.05).mul_(layer.s)
    moved = outputs(model, arguments)
    fresh.load_state_dict(model.state_dict())
    close(outputs(fresh, arguments), moved, "state dict", limit=0.0)
    fresh.load_state_dict(plain.state_dict())
    close(outputs(fresh, arguments), expected, "the plain state dict")
    merged = copy.deepcopy(model)
    merge_(merged)
    if merged.state_dict().keys() != plain.state_dict().keys():
        raise Fault("merge: other names than those of the plain model")
    close(outputs(merged, arguments), moved, "merge")
    notes = []
    for kind, run in (("compile", compiled), ("export", exported)):
        try:
            close(run(model, arguments), moved, kind)
        except Fault:
            raise
        except Exception as error:
            try:
                run(plain, arguments)
            except Exception:
                notes.append(f"the plain model does not {kind} either")
            else:
                raise Fault(f"{kind}: {type(error).__name__}: {error}") from error
    return notes


def outputs(model: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Tensor]:
    """Return the floating tensors of what a model returns."""
    torch.manual_seed(0)  # a few models draw in evaluation mode too
    made = model(**arguments)
    made = dict(made) if isinstance(made, Mapping) else made
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def close(found: list[Tensor], expected: list[Tensor], what: str, limit: float = _CLOSE) -> None:
    if len(found) != len(expected) or not found:
        raise Fault(f"{what}: {len(found)} tensors instead of {len(expected)}")
    error = max(relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    if not error <= limit:
        raise Fault(f"{what}: relative error {error:.1e}")


def check_gradients(plain: nn.Module, model: nn.Module, replaced: list[str], arguments: Arguments) -> None:
    """Compare the gradient of every offset with diag(uᵀ dW vhᵀ) of the plain model's weight; both may have none."""
    torch.manual_seed(1)
    weights = [torch.randn_like(value) for value in outputs(plain, arguments)]
    for module in (plain, model):
        made = zip(outputs(module, arguments), weights, strict=True)
        losses = [(value * weight).sum() for value, weight in made if value.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()
    largest = max((float(p.grad.norm()) for p in plain.parameters() if p.grad is not None), default=0.0)
    for name in replaced:
        layer: Any = model.get_submodule(name)
        theirs: Any = plain.get_submodule(name)
        found, dense = layer.delta_s_static.grad, theirs.weight.grad
        dense = dense.mT if dense is not None and is_conv1d(theirs) else dense
        if dense is None or not dense.any():
            if found is not None and found.any():
                raise Fault(f"gradient: {name} has one, and the plain layer has none")
            continue
        if found is None:
            raise Fault(f"gradient: {name} has none")
        expected = ((layer.u.mT @ dense) * layer.vh).sum(1)
        # a query of one key has no gradient but its rounding
        scale = max(float(expected.norm()), 1e-3 * float(dense.norm()), 1e-4 * largest)
        error = float((found - expected).norm()) / scale
        if not error < _GRADIENT:
            raise Fault(f"gradient: {name} has a relative error of {error:.1e}")


def compiled(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    torch.compiler.reset()
    return outputs(torch.compile(model, backend="aot_eager"), arguments)


def exported(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    with torch.no_grad():
        program = torch.export.export(model, (), dict(arguments), strict=False)
    return outputs(program.module(), arguments)
