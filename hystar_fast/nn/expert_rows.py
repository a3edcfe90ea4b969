"""The rows that `experts` has chosen: for each request of a batch its expert, in one thread and one task.

A layer whose model has a bank asks here in every forward. Where the answer would be wrong without an error, the call
raises: in a batch of another size, in a graph that would keep the rows of one call, and where gradient checkpointing
computes a layer again under other rows.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hystar_fast.ops.transforms import is_transformed

if TYPE_CHECKING:
    from hystar_fast.nn.fast_svd_linear import FastSVDLinear

_TOKENS = ("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds")  # what generate expands to beams
_NO_BATCH = ("mask", "position")  # inputs that may have one row for the whole batch


class ExpertNames:
    """The names of a bank. Its layers share one object, and so does a copy of the model among its own layers."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def row(self, expert: str | int) -> int:
        """Return the row of an expert; raise where the bank has no such name or row."""
        if isinstance(expert, str):
            if expert not in self.names:
                raise ValueError(f"an expert must be one of the bank, {_listed(self.names)}, got {expert!r}")
            return self.names.index(expert)
        try:
            row = operator.index(expert)
        except TypeError:
            row = None
        if row is None or isinstance(expert, bool) or (isinstance(expert, Tensor) and expert.dtype == torch.bool):
            raise TypeError(f"an expert must be a name, a row of the bank or None, got {type(expert).__name__}")
        if not 0 <= row < len(self.names):
            raise ValueError(f"an expert must be a row of the bank, 0..{len(self.names) - 1}, got {row}")
        return row


class ActiveRows:
    """The rows of one `with experts(...)`, and what has been seen of the batches in it."""

    _numbers = itertools.count(1)

    def __init__(self, rows: Sequence[int | None]) -> None:
        self.rows = tuple(rows)
        self.distinct = tuple(dict.fromkeys(rows))
        self.number = next(self._numbers)
        self.stamp = torch.tensor(self.number)  # on the CPU, so that reading it waits for no device
        self.batch = len(self.rows)
        self.tokens = -1
        self.calls = 0

    def offsets(self, bank: Tensor, rows: Sequence[int | None] | None = None) -> Tensor:
        """Return the rows of `bank` [K, r], one for each entry of `rows` (by default of the batch); zeros for None."""
        rows = self.rows if rows is None else rows
        taken = bank.index_select(0, torch.tensor([row or 0 for row in rows], device=bank.device))
        if None in rows:
            is_none = torch.tensor([row is None for row in rows], device=bank.device)
            taken = taken.masked_fill(is_none[:, None], 0.0)
        return taken

    def by_sample(self, x: Tensor) -> Tensor:
        """Return x [..., in] as [B, tokens, in], B requests; raise where its rows are not those of the batch.

        The beams of a request, and its tokens in a batch that a layer has flattened, lie one after the other.
        """
        if x.dim() >= 3:
            self.tokens = math.prod(x.shape[:-1])
        sizes = {self.batch, len(self.rows), *([self.tokens] if x.dim() == 2 else [])}  # an encoder has no beams
        if x.dim() < 2 or x.shape[0] not in sizes:
            raise ValueError(
                f"rows must be those of the batch, got {len(self.rows)} rows{self._beams()} for a layer whose input "
                f"has shape {tuple(x.shape)}; the first dimension must be the batch. Where a model has another order, "
                "or gives a layer a part of the batch, call that layer with delta_s and index"
            )
        return x.reshape(len(self.rows), -1, x.shape[-1])

    def _beams(self) -> str:
        return "" if self.batch == len(self.rows) else f" and a batch of {self.batch} in the model"

    def see_batch(self, size: int, *, is_expanded: bool) -> None:
        """Take the size of the batch that enters the model; outside training, tokens may be expanded, as for beams."""
        is_expanded = is_expanded and not torch.is_grad_enabled()
        if size != len(self.rows) and not (is_expanded and size and size % len(self.rows) == 0):
            needs = "as many rows as the batch, or a divisor of a batch of tokens with beams (under no_grad)"
            raise ValueError(f"rows must be {needs}, got {len(self.rows)} rows for a batch of {size}")
        self.batch = size


_ACTIVE: ContextVar[Mapping[ExpertNames, ActiveRows]] = ContextVar("hystar_fast.experts", default={})  # noqa: B039


@contextmanager
def experts(model: nn.Module, rows: Sequence[str | int | None] | Tensor) -> Iterator[None]:
    """Use an expert of the model's bank for each request of the batch, in every forward inside the ``with``.

    ``y[b] = u diag(s + delta_s_static + bank[rows[b]]) vh x[b] + bias`` in each layer of the bank (Eq. 1).

    It holds in this thread and this task (contextvars) until the ``with`` ends, by an exception too. Another thread
    starts without experts: enter the context there, or run the thread in ``contextvars.copy_context()``. An inner
    ``with`` for the same model replaces the outer one; those for two models stand side by side. A generator shares the
    context of its caller: do not ``yield`` inside.

    Args:
        model: module with an :class:`ExpertBank`, or a wrapper around it.
        rows: for each request a name, a row of the bank, or None for the model without an expert; or an integer
            Tensor [B]. Without gradients a batch of tokens (``generate`` with beams) may have a multiple of B rows, in
            the order of ``repeat_interleave``. Any other batch must have B.

    Gradients: for the rows of the bank that are used, summed over their requests. With gradient checkpointing
        (``use_reentrant=False``) call backward inside the same ``with``.

    Raises:
        TypeError, ValueError: the model has no bank or several, a name or row is not in it, or (in the forward) the
            batch has another size.
        RuntimeError: no layer of the bank was called in the ``with``, as in a graph that was made without it or in
            another thread; a layer is traced or exported inside; a model reads the weight of a layer instead of calling
            it; gradient checkpointing computes a layer again outside the ``with`` of its forward; or the ``with`` of
            another generator began inside and has not ended.

    Source: Transformer² (singular values for each task); Hystar, Eq. 1.

    Example:
        >>> import hystar_fast as hf
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> names = hf.inject(model, "*")
        >>> bank = hf.ExpertBank(model, ["english", "french"])
        >>> with hf.experts(model, ["french", None, "english"]):
        ...     y = model(torch.randn(3, 4))
    """
    names = names_of(model)
    if isinstance(rows, Tensor):
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"rows must be an integer Tensor [B], got {rows.dtype} of shape {tuple(rows.shape)}")
        rows = rows.tolist()
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise TypeError(f"rows must be a list with one entry a request, got {type(rows).__name__}")
    if not rows:
        raise ValueError("rows must have one entry a request, got none")
    active = ActiveRows([None if row is None else names.row(row) for row in rows])
    chosen = {**_ACTIVE.get(), names: active}
    token = _ACTIVE.set(chosen)
    try:
        yield
        is_last = _ACTIVE.get() is chosen
    finally:
        _ACTIVE.reset(token)
    if not is_last:
        raise RuntimeError(
            "experts must end in the reverse order of their beginning, got another `with experts` that is still open, "
            "whose rows replaced these: do not yield from a generator inside"
        )
    if not active.calls:
        raise RuntimeError(
            f"the body of experts must call layers of the bank, got no call in {type(model).__name__}: a graph that "
            "was made without the bank (traced, exported, captured) does not see it, nor does another thread"
        )


def names_of(model: nn.Module) -> ExpertNames:
    """Return the names of the model's one bank."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    layers = [module for module in model.modules() if getattr(module, "delta_s_experts", None) is not None]
    found = dict.fromkeys(layer._expert_names for layer in layers)
    if len(found) != 1:
        needs = "make one with ExpertBank(model, names)" if not found else "call experts for each part that has one"
        raise ValueError(f"model must have one ExpertBank, got {type(model).__name__} with {len(found)}; {needs}")
    names: ExpertNames = next(iter(found))  # type: ignore[assignment]
    return names


def see_input(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the size of the batch that enters a model with a bank."""
    active = _ACTIVE.get().get(getattr(model, "_expert_names", None))  # type: ignore[arg-type]
    if active is not None:
        _see(active, args, kwargs)


def _see(active: ActiveRows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    first = [value for value in args if isinstance(value, Tensor)][:1]
    named = {name: kwargs[name] for name in _TOKENS if isinstance(kwargs.get(name), Tensor)}
    for value in first or [*named.values()][:1]:
        active.see_batch(value.shape[0] if value.dim() else 0, is_expanded=not first or not value.is_floating_point())
        if not value.is_floating_point():
            active.tokens = math.prod(value.shape[:2])  # a mixture may flatten them before any layer of the bank
        return
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dim() >= 2 and not any(part in name for part in _NO_BATCH):
            active.see_batch(value.shape[0], is_expanded=False)
            return


def active_rows(layer: FastSVDLinear, x: Tensor) -> ActiveRows | None:
    """Return the rows that hold for a layer with a bank, or None; raise where they cannot hold."""
    active = None if layer._expert_names is None else _ACTIVE.get().get(layer._expert_names)
    if torch._C._current_graph_task_id() != -1:  # inside a backward: gradient checkpointing computes the layer again
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if active is None or hooks is None:
            way = "call backward inside it (rows of None for no expert)" if active is None else "use_reentrant=False"
            raise RuntimeError(
                "gradient checkpointing must compute a layer again inside the `with experts` of its forward, got a "
                f"recomputation that cannot know it; {way}, on a GPU under "
                "torch.autograd.set_multithreading_enabled(False)"
            )
    if active is None:
        return None
    is_captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None or is_captured:
        raise RuntimeError("experts must not be traced, exported or captured, got a graph that would keep its rows")
    active.calls += 1
    return active


def check_outside_experts(layer: FastSVDLinear) -> None:
    """Raise where `experts` holds for a layer whose weight is used instead of a call."""
    if layer._expert_names in _ACTIVE.get():
        raise RuntimeError(
            "experts need each layer of the bank to be called, got a model that reads the weight of one, which has no "
            "expert (in timm: qkv of BEiT and EVA); inject the other layers only"
        )


class _OfRows(torch.autograd.Function):
    """Identity whose backward checks that gradient checkpointing has recomputed it under the rows of the forward.

    Checkpointing replaces what is saved by what the recomputation saves, and leaves the context alone.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, stamp: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(stamp)
        ctx.number = number
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (stamp,) = ctx.saved_tensors
        if int(stamp) != ctx.number:
            raise RuntimeError(
                "gradient checkpointing must compute a layer again inside the `with experts` of its forward, got the "
                "rows of another one; call backward inside the `with` of the forward"
            )
        return gradient, None, None


def bound_to_rows(tensor: Tensor, active: ActiveRows) -> Tensor:
    """Return `tensor`, whose gradient raises where it was recomputed under other rows."""
    if not (torch.is_grad_enabled() and tensor.requires_grad) or is_transformed(tensor):
        return tensor
    bound: Tensor = _OfRows.apply(tensor, active.stamp, active.number)
    return bound


def with_gradient(tensor: Tensor, active: ActiveRows) -> Tensor:
    """Return `tensor`; where gradient checkpointing may compute it again, it needs a gradient, so that this is checked.

    Frozen experts over an input without a gradient save nothing that tells their rows to the backward of later layers.
    """
    is_checkpointed = torch.is_grad_enabled() and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    if tensor.requires_grad or not is_checkpointed or is_transformed(tensor):
        return tensor
    return tensor + bound_to_rows(tensor.new_zeros(()).requires_grad_(), active)


def _listed(names: Sequence[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
