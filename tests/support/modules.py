"""Modules of a package, and the check that their outputs share no memory with other tensors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn


def modules_with_forward(package: ModuleType) -> set[type[nn.Module]]:
    """Return every nn.Module class in `package` that has a forward and is not abstract."""
    found: set[type[nn.Module]] = set()
    for file in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        classes = inspect.getmembers(importlib.import_module(file.name), inspect.isclass)
        found |= {
            kind
            for _, kind in classes
            if issubclass(kind, nn.Module)
            and kind.__module__ == file.name
            and kind.forward is not nn.Module.forward
            and not inspect.isabstract(kind)
        }
    return found


def assert_owns_its_memory(y: Any, *others: Tensor | nn.Module | None) -> None:
    """Assert that `y` is no view and shares no memory with `others`, or with the tensors of those that are modules."""
    assert isinstance(y, Tensor)
    assert y._base is None and not y._is_view()
    for other in others:
        held: Iterable[Tensor] = [other] if isinstance(other, Tensor) else []
        if isinstance(other, nn.Module):
            held = (*other.parameters(), *other.buffers())
        for tensor in held:
            assert y.numel() == 0 or y.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
