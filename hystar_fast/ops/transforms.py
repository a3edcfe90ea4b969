"""How the ops meet autograd: transforms of torch.func and forward mode run the reference; eager calls skip a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def is_transformed(*tensors: Tensor | None) -> bool:
    """Return whether torch.func (grad, jvp, vmap, …) transforms the call, or a tensor has a forward-mode tangent.

    The public functions then run the reference, whose operations have all these rules: an op would ignore the
    transform and return derivatives that are zero.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def check_not_batched(name: str, tensor: Tensor | None, instead: str) -> None:
    """Raise NotImplementedError for a tensor that torch.func.vmap has batched."""
    if tensor is not None and torch._C._functorch.is_batchedtensor(tensor):
        raise NotImplementedError(f"{name} must not be batched by torch.func.vmap: {instead}")


# The dispatcher, too, leaves these keys behind when it calls an implementation. Inside, a view is not recorded as one,
# so a result may be a view and still be changed in place.
below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
_PLAIN = frozenset({Tensor, torch.nn.Parameter, NoneType, bool, int, float, str})


def eager_op(op: Callable[..., Any], cpu: Callable[..., Any], cuda: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls an op without its registered derivative, and its implementation without the op.

    The dispatcher of torch takes microseconds a call. Compiled, exported and traced programs keep the op. So do calls
    that something watches (dispatch and function modes, as FlopCounterMode; the profiler), calls under torch.func, and
    tensors that are no plain memory: subclasses, and those whose sign or zeros the dispatcher would resolve.
    """
    implementations = {"cpu": cpu, "cuda": cuda}

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*arguments)
        with below_autograd():
            direct = implementations.get(arguments[0].device.type)
            if direct is None or is_watched() or not are_plain(arguments):
                return op(*arguments)
            return direct(*arguments)

    return call


# Each gives something other than 0, False and None if it sees, records or transforms the ops of this thread.
WATCHERS: tuple[Callable[[], object], ...] = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._autograd._profiler_enabled,
    torch._C._get_tracing_state,
    torch._C._functorch.peek_interpreter_stack,
    torch._ops._len_torch_dispatch_stack_pre_dispatch,
)


def is_watched() -> bool:
    """Return whether something sees, records or transforms the ops of this thread."""
    for watcher in WATCHERS:  # noqa: SIM110 - any() takes twice as long
        if watcher():
            return True
    return False


def are_plain(arguments: tuple[Any, ...]) -> bool:
    """Return whether every tensor is a plain one, whose memory holds its values."""
    if not _PLAIN.issuperset(map(type, arguments)):
        return False
    if torch._C._functorch.is_legacy_batchedtensor(arguments[0]):  # the gradients of is_grads_batched
        return False
    for argument in arguments:
        if isinstance(argument, Tensor) and (argument.is_neg() or argument._is_zerotensor()):
            return False
    return True


def first_order(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the backward of an autograd.Function raise if a graph of it is asked for.

    torch's once_differentiable raises only where the incoming gradient requires grad; the gradient of a loss that is
    linear in the result does not, and its second derivative would be zero.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        checked = once_differentiable(backward)

        @wraps(backward)
        def run(ctx: Any, *gradients: Any) -> Any:
            if torch.compiler.is_compiling():
                return checked(ctx, *gradients)
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"create_graph must be False, because {op} has first derivatives only, got True; "
                    f"hystar_fast.ref.{op} and torch.func have higher ones"
                )
            return backward(ctx, *gradients)

        return run

    return decorate
