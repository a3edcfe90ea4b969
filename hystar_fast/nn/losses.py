"""StyleNCE as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hystar_fast.ops.style_nce import check_options, style_nce


class StyleNCELoss(nn.Module):
    """`hystar_fast.style_nce` with its options fixed; called with query, target ``[N, D]`` and perhaps a mask.

    Under DistributedDataParallel every process contrasts within its own batch; to contrast across processes gather
    both embeddings differentiably first (`torch.distributed.nn.all_gather`), and mind that DDP averages gradients.

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

    def forward(self, query: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return style_nce(query, target, mask=mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
