"""Losses of a batch of pairs: StyleNCE, and the losses that it is compared with, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.ops.style_nce import check_options, style_nce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PairLoss: TypeAlias = "Callable[..., Tensor]"
LOSSES = ("style_nce", "info_nce", "info_nce_hard", "triplet", "triplet_hard", "circle")


class StyleNCELoss(nn.Module):
    """Module over `hystar_fast.style_nce` that holds its options; forward takes query and target ``[N, D]`` and a mask.

    Under DistributedDataParallel every process compares the pairs of its own batch, unless forward is given the group
    of processes: `style_nce` says what it returns then. DDP averages gradients, so multiply that loss by the number of
    processes.

    Example:
        >>> import torch
        >>> from hystar_fast import StyleNCELoss
        >>> criterion = StyleNCELoss(gamma="auto")
        >>> query = torch.randn(4, 8, requires_grad=True)
        >>> criterion(query, torch.randn(4, 8)).backward()
        >>> query.grad.shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        gamma: float | str = 80.0,
        lam: float = 1.0,
        epsilon: float = 0.1,
        n_iter: int = 50,
        weights: str = "paper",
        plan_grad: str = "none",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_options(temperature, gamma, lam, epsilon, n_iter, weights, plan_grad, reduction)
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "gamma": gamma,
            "lam": lam,
            "epsilon": epsilon,
            "n_iter": n_iter,
            "weights": weights,
            "plan_grad": plan_grad,
            "reduction": reduction,
        }

    def forward(
        self, query: Tensor, target: Tensor, mask: Tensor | None = None, *, group: ProcessGroup | None = None
    ) -> Tensor:
        return style_nce(query, target, mask=mask, group=group, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class InfoNCELoss(nn.Module):
    """Cross entropy of the cosines over a temperature, with an optional weight for hard negatives.

    ``loss_i = -log( e^(s_ii/t) / (e^(s_ii/t) + sum_{j != i} w_ij e^(s_ij/t)) )`` with, over a row's n negatives,
    ``w_ij = n e^(hardness s_ij/t) / sum_k e^(hardness s_ik/t)``; ``hardness=0`` gives w = 1, InfoNCE.

    Args:
        temperature: t.
        hardness: the concentration beta of Robinson et al. Gradients flow through w. Their correction for negatives of
            the same class is left out; use a mask.

    Shapes: query, target [N, D]; mask bool [N, N], True where target j is not a negative of query i. Returns the mean.

    Gradients: for query and target.

    Source: van den Oord et al. 2018; Robinson et al., Contrastive Learning with Hard Negative Samples, 2021, Eq. 4.
    """

    def __init__(self, *, temperature: float = 0.07, hardness: float = 0.0) -> None:
        super().__init__()
        _check_number("temperature", temperature, may_be_zero=False)
        _check_number("hardness", hardness)
        self.temperature, self.hardness = temperature, hardness

    def forward(self, query: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = _cosines(query, target) / self.temperature
        negatives = _negative_pairs(len(query), mask, query.device)
        others = logits.masked_fill(~negatives, -math.inf)
        if self.hardness:
            weights = (self.hardness * others).masked_fill(~negatives.any(1, keepdim=True), 0.0).log_softmax(1)
            shift = weights + negatives.sum(1, keepdim=True).clamp(min=1).log()
            others = torch.where(negatives, others + torch.where(negatives, shift, 0.0), -math.inf)
        positive = logits.diagonal()
        return (torch.cat([positive[:, None], others], dim=1).logsumexp(1) - positive).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, hardness={self.hardness}"


class MetricLearningLoss(nn.Module):
    """Triplet or circle loss of pytorch-metric-learning on the cosines of pairs; needs ``hystar-fast[train]``.

    Query i is the anchor, target i its positive, the other targets its negatives.

    Args:
        name: ``"triplet"``: ``max(0, s_ij - s_ii + margin)``, averaged over the triplets where it is positive;
            ``"circle"``: Sun et al. 2020, Eq. 6, with relaxation ``margin`` and scale ``scale``.
        margin: a difference of cosines.
        scale: for circle alone.
        hard: use only the most similar negative of each query.

    Shapes: query, target [N, D]; mask bool [N, N], True where target j is not a negative of query i. Returns a scalar.

    Gradients: for query and target.

    Raises:
        ModuleNotFoundError: pytorch-metric-learning is not installed; the message names the extra.
    """

    def __init__(self, name: str, *, margin: float, scale: float = 80.0, hard: bool = False) -> None:
        super().__init__()
        if name not in ("triplet", "circle"):
            raise ValueError(f"name must be 'triplet' or 'circle', got {name!r}")
        _check_number("margin", margin)
        _check_number("scale", scale, may_be_zero=False)
        try:
            from pytorch_metric_learning import distances, losses
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"loss {name!r} needs pytorch-metric-learning: pip install 'hystar-fast[train]'"
            ) from error
        self.name, self.hard = name, hard
        self.inner: nn.Module = (
            losses.TripletMarginLoss(margin=margin, distance=distances.CosineSimilarity())
            if name == "triplet"
            else losses.CircleLoss(m=margin, gamma=scale)
        )

    def forward(self, query: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        negatives = _negative_pairs(len(query), mask, query.device)
        if self.hard:
            score = _cosines(query.detach(), target.detach()).masked_fill(~negatives, -math.inf)
            hardest = F.one_hot(score.argmax(1), len(query)).bool()
            negatives = negatives & hardest
        anchor, negative = negatives.nonzero(as_tuple=True)
        own = torch.arange(len(query), device=query.device)
        indices = (anchor, anchor, negative) if self.name == "triplet" else (own, own, anchor, negative)
        labels = own  # not used, as the pairs are given
        with torch.autocast(query.device.type, enabled=False):
            loss: Tensor = self.inner(query, labels, indices, ref_emb=target, ref_labels=labels)
        return loss


def create_loss(
    name: str = "style_nce",
    *,
    hardness: float = 1.0,
    margin: float = 0.2,
    circle_margin: float = 0.4,
    circle_scale: float = 80.0,
    **style_nce: Any,
) -> nn.Module:
    """Create a loss by its name (Table 14); each uses its own options and ignores the others.

    Args:
        name: one of ``LOSSES``: ``"style_nce"``, ``"info_nce"`` (temperature), ``"info_nce_hard"`` (temperature,
            hardness), ``"triplet"`` and ``"triplet_hard"`` (margin), ``"circle"`` (circle_margin, circle_scale).
        style_nce: the options of :class:`StyleNCELoss` without ``reduction``.

    Returns:
        A module of (query, target, mask=None) -> scalar.

    Raises:
        ValueError, TypeError: the name is unknown, or an option has the wrong type or value.
        ModuleNotFoundError: triplet or circle without the extra ``hystar-fast[train]``.

    Example:
        >>> create_loss("info_nce", temperature=0.1)
        InfoNCELoss(temperature=0.1, hardness=0.0)
    """
    weighted = StyleNCELoss(**style_nce, reduction="mean")
    if name == "style_nce":
        return weighted
    if name in ("info_nce", "info_nce_hard"):
        hardness = hardness if name == "info_nce_hard" else 0.0
        return InfoNCELoss(temperature=weighted.options["temperature"], hardness=hardness)
    if name in ("triplet", "triplet_hard"):
        return MetricLearningLoss("triplet", margin=margin, hard=name == "triplet_hard")
    if name == "circle":
        return MetricLearningLoss("circle", margin=circle_margin, scale=circle_scale)
    raise ValueError(f"name must be one of {', '.join(LOSSES)}, got {name!r}")


def loss_options() -> dict[str, tuple[Any, Any]]:
    """Return type and default of every option of :func:`create_loss`: name, the options of StyleNCE, the others."""
    own, found = _options(create_loss), _options(StyleNCELoss.__init__)
    del found["reduction"]
    return {"name": own.pop("name"), **found, **own}


def style_nce_options(source: object) -> dict[str, Any]:
    """Return the options of StyleNCE that `create_loss` takes, from the attributes of `source`."""
    return {name: getattr(source, name) for name in _options(StyleNCELoss.__init__) if name != "reduction"}


def _options(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    return {name: (hints[name], p.default) for name, p in parameters.items() if p.default is not p.empty}


def _cosines(query: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(query.dtype, target.dtype), torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return F.normalize(query.to(dtype), dim=-1) @ F.normalize(target.to(dtype), dim=-1).mT


def _negative_pairs(n: int, mask: Tensor | None, device: torch.device) -> Tensor:
    negatives = ~torch.eye(n, dtype=torch.bool, device=device)
    return negatives if mask is None else negatives & ~mask


def _check_number(name: str, value: object, *, may_be_zero: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (value >= 0 if may_be_zero else value > 0) or not math.isfinite(value):
        raise ValueError(f"{name} must be finite and {'at least' if may_be_zero else 'above'} 0, got {value}")
