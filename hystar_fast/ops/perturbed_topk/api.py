"""The public function perturbed_topk, the schema of its ops, their fake kernels and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hystar_fast.ops.native import extension_problem, instruction_set
from hystar_fast.ops.perturbed_topk import cpu
from hystar_fast.ops.perturbed_topk import torch as plain
from hystar_fast.ops.status import OpStatus
from hystar_fast.ops.transforms import check_not_batched, eager_op, first_order, is_transformed
from hystar_fast.ref.perturbed_topk import check_arguments, forbidden_positions, normal_noise
from hystar_fast.ref.perturbed_topk import perturbed_topk as reference

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "perturbed_topk_forward(Tensor scores, Tensor noise, Tensor forbidden, int k, float sigma, bool keep) "
    "-> (Tensor soft, Tensor chosen)"
)
LIB.define(
    "perturbed_topk_backward(Tensor dsoft, Tensor chosen, Tensor noise, Tensor forbidden, float sigma) -> Tensor"
)
for _device, _module in (("CPU", cpu), ("CUDA", plain)):
    LIB.impl("perturbed_topk_forward", _module.forward, _device)
    LIB.impl("perturbed_topk_backward", _module.backward, _device)


@torch.library.register_fake("hystar_fast::perturbed_topk_forward", lib=LIB)
def _forward_fake(
    scores: Tensor, noise: Tensor, forbidden: Tensor, k: int, sigma: float, keep: bool
) -> tuple[Tensor, Tensor]:
    b, samples, n = noise.shape
    chosen = (b, samples, min(k, n)) if keep else (0,)
    return scores.new_empty(b, k, n), scores.new_empty(chosen, dtype=torch.int32)


@torch.library.register_fake("hystar_fast::perturbed_topk_backward", lib=LIB)
def _backward_fake(dsoft: Tensor, chosen: Tensor, noise: Tensor, forbidden: Tensor, sigma: float) -> Tensor:
    return dsoft.new_empty(forbidden.shape)


_forward = eager_op(torch.ops.hystar_fast.perturbed_topk_forward.default, cpu.forward, plain.forward)
_backward = eager_op(torch.ops.hystar_fast.perturbed_topk_backward.default, cpu.backward, plain.backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    scores, noise, forbidden, ctx.k, ctx.sigma, ctx.keep = inputs
    ctx.save_for_backward(scores, noise, forbidden, output[1])


@first_order("perturbed_topk")
def _backward_of_op(ctx: Any, dsoft: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the op itself, as exported programs call it; positions that were not kept are chosen again."""
    scores, noise, forbidden, chosen = ctx.saved_tensors
    if not ctx.keep:
        chosen = _forward(scores, noise, forbidden, ctx.k, ctx.sigma, True)[1]
    return _backward(dsoft, chosen, noise, forbidden, ctx.sigma), None, None, None, None, None


torch.library.register_autograd(
    "hystar_fast::perturbed_topk_forward", _backward_of_op, setup_context=_setup_context, lib=LIB
)


class _PerturbedTopk(torch.autograd.Function):
    """The mean over the samples. It keeps the noise and the positions that every sample chose."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, noise: Tensor, forbidden: Tensor, k: int, sigma: float) -> Tensor:
        soft, chosen = _forward(scores, noise, forbidden, k, sigma, True)
        ctx.save_for_backward(chosen, noise, forbidden)
        ctx.sigma = sigma
        return soft

    @staticmethod
    @first_order("perturbed_topk")
    def backward(ctx: Any, dsoft: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(dsoft, *ctx.saved_tensors, ctx.sigma), None, None, None, None


def perturbed_topk(
    scores: Tensor,
    k: int,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Choose the k largest of N scores, smoothed by noise so that the choice has a gradient.

    Row r of the result is the distribution of the r-th chosen position, in the order of the positions::

        Y = mean over s of top-K(scores + sigma Z_s),    Z_s ~ N(0, I),    s = 1 ... samples
        dY/dscores = covariance over s of (top-K(scores + sigma Z_s), Z_s) / sigma

    where top-K is the one-hot matrix [K, N] of the k largest entries, **sorted by position**. All rows of a sample come
    from one vector of noise. The gradient is the full Jacobian: how likely a position is chosen depends on every score.

    Args:
        scores: ``[B, N]``, any floating dtype; computed in float32, or float64 for float64. ``-inf`` forbids a
            position.
        k: Positions to choose, at least 1.
        sigma: Standard deviation of the noise, in the unit of the scores, > 0.
        samples: Samples of the noise, S, at least 2.
        generator: Source of the noise, on the device of scores; None is torch's own. One call draws
            ``torch.randn(B, S, N)`` in float32 for scores of any dtype, so that a precision and the reference see the
            same noise.
        mask: bool, broadcasts to the shape of scores. True forbids a position, whatever its score.

    Returns:
        ``soft [B, K, N]``, float64 for float64 scores and float32 otherwise. Rows sum to 1, columns to at most 1.
        Forbidden positions are exactly zero. If an item of the batch has n < k positions that may be chosen, its first
        n rows choose them in their order, and the rows after them are zero. Of equal perturbed scores, the first is
        chosen. If a score that may be chosen is NaN or +inf, the rows of its item are NaN, and those of other items are
        not affected.

    Gradients:
        scores; an unbiased estimate of the derivative of the expectation of Y. First order only (any order and forward
        mode through torch.func, which runs the reference). It sums to 0 over the positions; it is exactly zero for
        forbidden positions, for items that are NaN, and where all samples chose the same, as for n <= k.

    Cost:
        B S N normal numbers, which cost most; B S selections; backward B S (K + N) multiply-adds. Memory: the noise,
        4 B S N bytes, and for the gradient also 4 B S K bytes of positions.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range.

    Source:
        Berthet et al., Learning with differentiable perturbed optimizers (2020); Cordonnier et al., Differentiable
        patch selection (2021); docs/algorithms/perturbed_topk.md.

    Example:
        >>> import torch
        >>> from hystar_fast import perturbed_topk
        >>> perturbed_topk(torch.tensor([[0.1, 0.9, 0.0, 0.7]]), 2, sigma=1e-3, samples=10)
        tensor([[[0., 1., 0., 0.],
                 [0., 0., 0., 1.]]])
    """
    check_arguments(scores, k, sigma, samples, generator, mask)
    k, sigma, samples = int(k), float(sigma), int(samples)
    if is_transformed(scores):
        for name, tensor in (("scores", scores), ("mask", mask)):
            check_not_batched(name, tensor, "pass the whole batch, [B, N]")
        return reference(scores, k, sigma=sigma, samples=samples, generator=generator, mask=mask)
    if scores.dtype != torch.float32 and scores.dtype != torch.float64:
        scores = scores.float()
    forbidden = forbidden_positions(scores, mask)
    noise = normal_noise(scores, samples, generator)
    is_exporting = torch.compiler.is_exporting()  # then the program is differentiated by the op
    if scores.requires_grad and torch.is_grad_enabled() and not is_exporting:
        soft: Tensor = _PerturbedTopk.apply(scores, noise, forbidden, k, sigma)
        return soft
    plain_scores = scores if is_exporting else scores.detach()
    soft = _forward(plain_scores, noise, forbidden, k, sigma, False)[0]
    return soft


def status() -> list[OpStatus]:
    """Return the implementation of perturbed_topk on each device."""
    slow, isa = "torch: a stable sort of every sample, gathers backward", instruction_set()
    on_cpu = slow if isa is None else f"C++: selection by thresholds, {isa}; gathers backward in torch"
    return [
        OpStatus("perturbed_topk", "cpu", on_cpu, extension_problem() or ""),
        OpStatus("perturbed_topk", "cuda", slow),
    ]
