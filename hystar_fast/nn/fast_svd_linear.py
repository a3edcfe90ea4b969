"""FastSVDLinear: a frozen linear layer whose singular values take offsets, shared or one set for each sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hystar_fast.nn.expert_rows import ExpertNames
from hystar_fast.nn.factors import SVDFactors, checked_rank, factorise, svd_factors
from hystar_fast.nn.lazy_weight import LazyWeight
from hystar_fast.nn.weights import check_weight
from hystar_fast.ops.svd_linear import Fp8Factors, quantise_factors, svd_linear
from hystar_fast.ops.transforms import is_transformed
from hystar_fast.ref.dense import FLOATING


class _QuantisedFactors:
    """Factors in e4m3 and the tensors that they were made from. torch.compile cannot trace :meth:`are_of`."""

    def __init__(self, u: Tensor, vh: Tensor) -> None:
        self.factors = quantise_factors(u, vh)
        self.made_from = None if torch.compiler.is_compiling() else (u, _version(u), vh, _version(vh))

    def are_of(self, u: Tensor, vh: Tensor) -> bool:
        """Return True where the factors were made from these tensors and neither has been written to since."""
        if self.made_from is None:
            return False
        old_u, u_version, old_vh, vh_version = self.made_from
        return old_u is u and old_vh is vh and (u_version, vh_version) == (_version(u), _version(vh))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _OffsetWeight(torch.autograd.Function):
    """The weight as a function of its static offset: d offset = diag(uᵀ dW vhᵀ). It is built only when it is used."""

    @staticmethod
    def forward(
        ctx: Any, offset: Tensor, u: Tensor, vh: Tensor, build: Callable[[], Tensor], shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(u, vh)
        ctx.dtype = offset.dtype
        return LazyWeight(build, u, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dweight: Tensor) -> tuple[Tensor | None, ...]:
        u, vh = ctx.saved_tensors
        with torch.autocast(u.device.type, enabled=False):
            projected = u.to(ctx.dtype).mT @ dweight.to(ctx.dtype)
        return (projected * vh).sum(1).to(ctx.dtype), None, None, None, None


class FastSVDLinear(nn.Module):
    """Linear layer with frozen singular vectors, whose singular values take a static and a per-sample offset.

    ``y = u diag(s + delta_s_static + delta_s) vh x + bias`` with ``W = u diag(s) vh`` (Eq. 1). With a truncated rank
    and the remainder kept, ``y = W x + bias + u diag(delta_s_static + delta_s) vh x``. With zero offsets it equals the
    layer that it was built from.

    The factors and the bias are frozen Parameters and not buffers: DistributedDataParallel broadcasts buffers in every
    forward, and FSDP2 shards Parameters only. ``s`` and ``delta_s_static`` stay in float32 (float64 in a float64 layer)
    when the layer is cast to half precision, where a small update would be rounded away.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the weight is initialised as there.
        rank: number of leading singular values that take offsets; ``None`` means all ``min(in, out)``.
        keep_remainder: keep the rest of the spectrum of a truncated layer. Without it the weight has rank ``rank``, and
            the layer is cheaper than nn.Linear where ``rank < in * out / (in + out)``.
        precision: ``"fp8"`` computes the modulated products of the forward in e4m3, as in :func:`svd_linear`. It can be
            set on a layer at any time. The quantised factors are held beside u and vh, and are not saved.

    Shapes: x [..., in] and delta_s [r]; x [B, ..., in] and delta_s [B, r]; or a bank delta_s [K, r] with ``index``
        [B] int, the row of each sample. Returns [..., out].

    Gradients: for x, delta_s and delta_s_static; for bias once it is unfrozen. u and vh cannot be trained.

    Cost: ``2 r (in + out)`` FLOPs a token, where nn.Linear takes ``2 in out``; with the remainder, both. No weight is
        built for a sample, unless :func:`svd_linear` finds that cheaper.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape; the message says what it must be.

    Source: Hystar, Sec. 3.2.

    Example:
        >>> layer = FastSVDLinear.from_linear(nn.Linear(6, 4))
        >>> x, delta_s = torch.randn(2, 5, 6), torch.randn(2, 4)
        >>> layer(x, delta_s).shape
        torch.Size([2, 5, 4])
    """

    u: nn.Parameter
    s: nn.Parameter
    vh: nn.Parameter
    base_weight: nn.Parameter | None
    bias: nn.Parameter | None
    delta_s_static: nn.Parameter
    delta_s_experts: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int | None = None,
        keep_remainder: bool = True,
        precision: Literal["fp8"] | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if precision not in (None, "fp8"):
            raise ValueError(f"precision must be None or 'fp8', got {precision!r}")
        self.precision = precision
        self._quantised: _QuantisedFactors | None = None
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in FLOATING:
            raise TypeError(f"dtype must be {', '.join(map(str, FLOATING[:-1]))} or {FLOATING[-1]}, got {dtype}")
        self.rank = checked_rank(torch.empty(out_features, in_features, device="meta", dtype=dtype), rank)
        self.in_features, self.out_features = in_features, out_features
        precise = torch.promote_types(dtype, torch.float32)

        def frozen(*shape: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype), requires_grad=False)

        self.u = frozen(out_features, self.rank)
        self.s = frozen(self.rank, dtype=precise)
        self.vh = frozen(self.rank, in_features)
        remainder = keep_remainder and self.rank < min(in_features, out_features)
        self.register_parameter("base_weight", frozen(out_features, in_features) if remainder else None)
        self.register_parameter("bias", frozen(out_features) if bias else None)
        self.delta_s_static = nn.Parameter(torch.empty(self.rank, device=device, dtype=precise))
        self.register_parameter("delta_s_experts", None)  # [K, r], made by an ExpertBank
        self._expert_names: ExpertNames | None = None
        if not self.u.is_meta:
            self.reset_parameters()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int | None = None,
        keep_remainder: bool = True,
        *,
        precision: Literal["fp8"] | None = None,
        cache_dir: str | Path | None = None,
    ) -> FastSVDLinear:
        """Build the layer that equals ``linear`` at zero offset.

        ``linear`` does not change: weight and bias are copied. The factors are read from the cache on disk where they
        are in it, see :func:`svd_factors`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        check_weight(linear.weight)
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias is not None,
            rank=rank,
            keep_remainder=keep_remainder,
            precision=precision,
            device="meta",
            dtype=weight.dtype,
        )
        if not weight.is_meta:
            layer.to_empty(device=weight.device)
            layer._set_parameters(weight, bias, svd_factors(weight, layer.rank, cache_dir=cache_dir))
        return layer.train(linear.training)

    def reset_parameters(self) -> None:
        """Draw a weight and a bias as nn.Linear does, factor the weight, and set the static offset to zero."""
        bias = self.bias is not None
        plain = nn.Linear(self.in_features, self.out_features, bias, device=self.u.device, dtype=self.u.dtype)
        self._set_parameters(plain.weight, plain.bias, factorise(plain.weight, self.rank))

    @torch.no_grad()
    def _set_parameters(self, weight: Tensor, bias: Tensor | None, factors: SVDFactors) -> None:
        for parameter, value in zip((self.u, self.s, self.vh), factors, strict=True):
            parameter.copy_(value)
        if self.base_weight is not None:
            self.base_weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        self.delta_s_static.zero_()

    def forward(self, x: Tensor, delta_s: Tensor | None = None, *, index: Tensor | None = None) -> Tensor:
        if self.delta_s_experts is not None:
            from hystar_fast.nn.expert_forward import forward_with_experts  # loads the compiler

            y = forward_with_experts(self, x, delta_s)
            if y is not None:
                return y
        return self.modulated(x, delta_s, index)

    def modulated(self, x: Tensor, delta_s: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Compute the forward from its arguments alone, whatever experts are chosen."""
        offset: Tensor = self.delta_s_static
        if delta_s is not None:
            self._check_offset(x, delta_s, index)
            offset = offset + delta_s
        elif index is not None:
            raise ValueError(f"index must be None where delta_s is None, got {type(index).__name__}")
        scale, bias = (self.s + offset, self.bias) if self.base_weight is None else (offset, None)
        factors = None if self.precision is None else self._fp8_factors()
        y = svd_linear(x, self.u, scale, self.vh, bias, index=index, precision=self.precision, factors=factors)
        return y if self.base_weight is None else F.linear(x, self.base_weight, self.bias) + y

    def _fp8_factors(self) -> Fp8Factors:
        """Return the factors in e4m3, which are computed again where u or vh was replaced or written to."""
        quantised = self._quantised
        if quantised is None or not (torch.compiler.is_compiling() or quantised.are_of(self.u, self.vh)):
            quantised = self._quantised = _QuantisedFactors(self.u, self.vh)
        return quantised.factors

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_quantised": None}

    def _check_offset(self, x: Tensor, delta_s: Tensor, index: Tensor | None) -> None:
        if not isinstance(delta_s, Tensor):
            raise TypeError(f"delta_s must be a Tensor, got {type(delta_s).__name__}")
        if delta_s.dim() not in (1, 2) or delta_s.shape[-1] != self.rank:
            needs = f"[{self.rank}], [B, {self.rank}], or [K, {self.rank}] with index"
            raise ValueError(f"delta_s must be {needs}, got shape {tuple(delta_s.shape)}")
        if delta_s.dim() == 2 and index is None and (x.dim() < 2 or delta_s.shape[0] != x.shape[0]):
            raise ValueError(
                f"delta_s must have one row for each sample of x {tuple(x.shape)}, got shape {tuple(delta_s.shape)}; "
                "pass index to use it as a bank"
            )

    @property
    def weight(self) -> Tensor:
        """Weight [out, in] with the static offset folded in: read-only, and built only when it is used.

        It carries the gradient of ``delta_s_static``, so that models train which read it instead of calling the layer.
        Its values must not be used inside :func:`experts`, which gives a request no weight of its own.
        """
        if self.delta_s_experts is not None:
            from hystar_fast.nn.expert_forward import weight_outside_experts  # loads the compiler

            return weight_outside_experts(self)
        return self._read_only_weight(self._materialise)

    def _read_only_weight(self, materialise: Callable[[], Tensor]) -> Tensor:
        if torch.compiler.is_compiling() or is_transformed():
            return materialise()
        shape, build = (self.out_features, self.in_features), torch.no_grad()(materialise)
        if torch.is_grad_enabled() and self.delta_s_static.requires_grad:
            return _OffsetWeight.apply(self.delta_s_static, self.u, self.vh, build, shape)
        return LazyWeight(build, self.u, shape)

    @torch.no_grad()
    def _detached_weight(self, delta_s: Tensor | None = None) -> Tensor:
        return self._materialise(delta_s)

    def _materialise(self, delta_s: Tensor | None = None) -> Tensor:
        with nullcontext() if self.u.is_meta else torch.autocast(self.u.device.type, enabled=False):
            precise = self.delta_s_static.dtype
            offset = self.delta_s_static if delta_s is None else self.delta_s_static + delta_s
            scale = self.s + offset if self.base_weight is None else offset
            weight = (self.u.to(precise) * scale) @ self.vh.to(precise)
            if self.base_weight is not None:
                weight = self.base_weight + weight
            return weight.to(self.u.dtype)

    def merge(self, delta_s: Tensor | None = None) -> nn.Linear:
        """Return a frozen nn.Linear with the static offset and ``delta_s`` [r] folded in; the layer does not change."""
        if delta_s is not None and delta_s.shape != self.s.shape:
            raise ValueError(f"delta_s must be [{self.rank}], got shape {tuple(delta_s.shape)}")
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.u.dtype)
        plain.weight = nn.Parameter(self._detached_weight(delta_s), requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return plain.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastSVDLinear:
        self._quantised = None
        trained = [p for p in (self.delta_s_static, self.delta_s_experts) if p is not None]
        precise = [tensor for p in trained for tensor in (p, p.grad) if tensor is not None] + [self.s]

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.dtype.itemsize < torch.float32.itemsize and any(tensor is kept for kept in precise)
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(keep_precision, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._expert_names is not None and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["experts"] = self._expert_names.names

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the ``weight`` of nn.Linear in place of the factors: it is factored, and the static offset is zero."""
        self._quantised = None
        saved, own = args[0].get("experts"), None if self._expert_names is None else self._expert_names.names
        if saved is not None and own is not None and tuple(saved) != own:
            args[-1].append(f"{prefix}delta_s_experts must be of the experts {own}, got those of {tuple(saved)}")
            return
        if prefix + "weight" in state_dict and prefix + "u" not in state_dict:
            weight = state_dict.pop(prefix + "weight")
            reason = self._reason_against(weight, prefix)
            if reason:
                args[-1].append(reason)
                return
            factors = SVDFactors(*(factor.detach() for factor in svd_factors(weight, self.rank)))
            state_dict[prefix + "u"], state_dict[prefix + "vh"] = (f.to(self.u.dtype) for f in (factors.u, factors.vh))
            state_dict[prefix + "s"] = factors.s.to(self.s.dtype)
            if self.base_weight is not None:
                state_dict[prefix + "base_weight"] = weight
            state_dict.setdefault(prefix + "delta_s_static", torch.zeros_like(state_dict[prefix + "s"]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _reason_against(self, weight: Tensor, prefix: str) -> str | None:
        """Return why the weight of a state dict cannot be factored into this layer, or None where it can."""
        try:
            check_weight(weight)
        except TypeError as error:
            return f"{prefix}{error}"
        if weight.is_meta and not self.u.is_meta:
            return f"{prefix}weight must have values, got a tensor on the meta device"
        if weight.shape != (self.out_features, self.in_features):
            needs = (self.out_features, self.in_features)
            return f"size mismatch for {prefix}weight: it must have shape {needs}, got {tuple(weight.shape)}"
        return None

    def extra_repr(self) -> str:
        kept = ", keep_remainder=True" if self.base_weight is not None else ""
        kept += "" if self.precision is None else f", precision={self.precision}"
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, rank={self.rank}{kept}"
