"""Fast per-sample spectral modulation, Sinkhorn, StyleNCE and top-K for PyTorch, and the Hystar model on them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it. Names load on first use, so that `import hystar_fast` costs
# only torch, and open_clip and transformers are paid for by those who build a Hystar.
_EXPORTS = {
    "svd_linear": "hystar_fast.ops.svd_linear",
    "sinkhorn": "hystar_fast.ops.sinkhorn",
    "style_nce": "hystar_fast.ops.style_nce",
    "perturbed_topk": "hystar_fast.ops.perturbed_topk",
    "StyleNCELoss": "hystar_fast.nn.losses",
    "FastSVDLinear": "hystar_fast.nn.fast_svd_linear",
    "inject": "hystar_fast.nn.inject",
    "load_injected": "hystar_fast.nn.load_injected",
    "ExpertBank": "hystar_fast.nn.expert_bank",
    "experts": "hystar_fast.nn.expert_rows",
    "Hypernetwork": "hystar_fast.nn.hypernetwork",
    "HystarConfig": "hystar_fast.models.config",
    "Hystar": "hystar_fast.models.hystar",
    "info": "hystar_fast.ops.status",
}
_SUBMODULES = {"ref", "ops", "nn", "data", "models", "methods", "train", "retrieval", "index", "experiments", "cli"}

__all__ = ["__version__", "ref", *_EXPORTS]

if TYPE_CHECKING:  # `as` makes each a public name to type checkers
    from hystar_fast import ref as ref
    from hystar_fast.models.config import HystarConfig as HystarConfig
    from hystar_fast.models.hystar import Hystar as Hystar
    from hystar_fast.nn.expert_bank import ExpertBank as ExpertBank
    from hystar_fast.nn.expert_rows import experts as experts
    from hystar_fast.nn.fast_svd_linear import FastSVDLinear as FastSVDLinear
    from hystar_fast.nn.hypernetwork import Hypernetwork as Hypernetwork
    from hystar_fast.nn.inject import inject as inject
    from hystar_fast.nn.load_injected import load_injected as load_injected
    from hystar_fast.nn.losses import StyleNCELoss as StyleNCELoss
    from hystar_fast.ops.perturbed_topk import perturbed_topk as perturbed_topk
    from hystar_fast.ops.sinkhorn import sinkhorn as sinkhorn
    from hystar_fast.ops.status import info as info
    from hystar_fast.ops.style_nce import style_nce as style_nce
    from hystar_fast.ops.svd_linear import svd_linear as svd_linear


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"hystar_fast.{name}")
    else:
        raise AttributeError(f"module 'hystar_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
