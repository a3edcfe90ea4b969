"""Read-only weight that is built from its factors only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_ALIASING = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
# a RuntimeError, as torch turns a TypeError of an in-place operator into an operation out of place
_READ_ONLY = (
    "FastSVDLinear.weight must not be written to, got {}: it is built from the factors u, s and vh. Train "
    "delta_s_static, or call merge() for an nn.Linear with a weight of its own"
)


class LazyWeight(Tensor):
    """Tensor whose shape, dtype and device are known without its values; every operation builds the values again.

    Some models read ``layer.weight.dtype`` in every forward (open_clip, T5), which must not cost a matrix product.
    A write into it or into a view of it raises, as it would be lost.
    """

    _build: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, build: Callable[[], Tensor], like: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None
    ) -> LazyWeight:
        return Tensor._make_wrapper_subclass(cls, shape, strides, dtype=like.dtype, device=like.device)

    def __init__(self, build: Callable[[], Tensor], *_: Any) -> None:
        self._build = build

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ALIASING:  # `.data` and `.detach()` are read-only too
            return cls(args[0]._build, args[0], args[0].shape, args[0].stride())
        values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written and any(isinstance(leaf, cls) for leaf in tree_leaves(values.get(argument.name))):
                raise RuntimeError(_READ_ONLY.format(func))
        args, kwargs = tree_map_only(cls, cls.build, (args, kwargs))
        result = func(*args, **kwargs)
        is_view = any(value.alias_info is not None for value in func._schema.returns)
        return tree_map_only(Tensor, cls._of_view, result) if is_view else result

    @classmethod
    def _of_view(cls, view: Tensor) -> LazyWeight:
        """Wrap a view of the built values, so that a write into it raises too."""
        return cls(lambda: view, view, view.shape, view.stride())

    def build(self) -> Tensor:
        """Return the weight as a plain tensor."""
        return self._build()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise RuntimeError(_READ_ONLY.format("an assignment to data"))

    def _has_no_memory(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "FastSVDLinear.weight must not be accessed by its memory, which it does not have: it is built from the "
            "factors u, s and vh. Take weight.clone(), or call merge() for an nn.Linear with a weight of its own"
        )

    data_ptr = storage = untyped_storage = share_memory_ = set_ = pin_memory = _has_no_memory

    def numpy(self, *, force: bool = False) -> Any:
        array = self.build().numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        return self.build().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.build())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.build()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.build().__reduce_ex__(protocol)
