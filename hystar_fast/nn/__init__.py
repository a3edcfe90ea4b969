"""PyTorch modules: SVD factors, FastSVDLinear and its injection, experts, attention, hypernetwork, losses."""

from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.expert_rows import experts
from hystar_fast.nn.factors import SVDFactors, svd_factors
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.nn.inject import inject, merge_, unmerge_
from hystar_fast.nn.load_injected import load_injected
from hystar_fast.nn.losses import StyleNCELoss

__all__ = [
    "ExpertBank",
    "FastSVDLinear",
    "Hypernetwork",
    "SVDAttention",
    "SVDFactors",
    "StyleNCELoss",
    "experts",
    "inject",
    "load_injected",
    "merge_",
    "svd_factors",
    "unmerge_",
]
