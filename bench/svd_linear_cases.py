"""Cases of bench_svd_linear.py, the most important first, so that an interrupted run has measured them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

BOTH_MODES = ("forward", "forward+backward")
# The gradients that a model needs -> the mode that measures the call that gives them
NEEDS = {"none": "forward", "both": "backward", "x": "backward of x", "scale": "backward of scale"}
TRAINING_MODES = ("training forward", "backward", "forward+backward")  # the first keeps what the second needs
CPU_PROVIDERS = (
    "plain linear",
    "hystar_fast",
    "reference, eager",
    "reference, torch.compile",
    "two GEMMs",
    "authors' path",
)
CORE_PROVIDERS = ("plain linear", "two GEMMs", "hystar_fast", "hystar_fast, fp8")
FULL_PROVIDERS = (
    *CORE_PROVIDERS,
    "hystar_fast, not persistent",
    "authors' path",
    "materialised",
    "reference, eager",
    "reference, torch.compile",
)
FORWARD_PROVIDERS = (
    *FULL_PROVIDERS,
    "plain linear, fp8",
    "hystar_fast, fp8, second product by torch",
    "peft, a LoRA a sample",
)
SMALL_RANK_PROVIDERS = ("plain linear", "two GEMMs", "hystar_fast", "hystar_fast, two kernels", "reference, eager")


@dataclass(frozen=True)
class Case:
    """A layer, a batch and a dtype, with the modes and the providers to measure."""

    batch: int
    tokens: int
    in_features: int
    out_features: int
    rank: int
    dtype: torch.dtype = torch.bfloat16
    kind: str = "sample"  # one scale a sample; or a "bank" of 8 scales with an index; or one "shared" scale
    modes: tuple[str, ...] = BOTH_MODES
    providers: tuple[str, ...] = CORE_PROVIDERS

    def __str__(self) -> str:
        shape = f"B{self.batch} T{self.tokens} {self.in_features}->{self.out_features} r{self.rank}"
        return shape if self.kind == "sample" else f"{shape} {self.kind}"

    def toy(self) -> Case:
        """Return the case at a size that takes no time."""
        shrunk = {name: max(4, getattr(self, name) // 32) for name in ("in_features", "out_features", "rank")}
        return replace(self, batch=2, tokens=5, **shrunk)


def cpu_cases() -> Iterator[Case]:
    """Yield the cases of a CPU: packed qkv and output projection of ViT-L/14."""
    for out in (3072, 1024):
        for dtype in (torch.float32, torch.bfloat16):
            yield Case(16, 257, 1024, out, 1024, dtype, providers=CPU_PROVIDERS)


def cuda_cases() -> Iterator[Case]:
    """Yield the cases of a GPU: those with goals, then other layers, batches, ranks, dtypes and kinds of scale."""
    qkv, square = Case(48, 257, 1024, 3072, 1024), Case(48, 257, 1024, 1024, 1024)
    for layer in (qkv, square):
        yield replace(layer, modes=("forward",), providers=FORWARD_PROVIDERS)
        yield replace(layer, modes=TRAINING_MODES, providers=FULL_PROVIDERS)
    for rank in (64, 128):
        yield replace(qkv, rank=rank, providers=SMALL_RANK_PROVIDERS)
    for rank in (1024, 64):
        providers = CORE_PROVIDERS if rank > 128 else SMALL_RANK_PROVIDERS
        yield replace(qkv, batch=1, rank=rank, modes=("forward",), providers=providers)
    yield replace(qkv, batch=8)
    yield replace(qkv, batch=8, rank=64, providers=SMALL_RANK_PROVIDERS)
    yield replace(square, batch=8, rank=128, providers=SMALL_RANK_PROVIDERS)
    yield replace(qkv, batch=256)
    yield replace(qkv, rank=512)
    yield replace(square, rank=512)
    for kind in ("bank", "shared"):
        yield replace(qkv, kind=kind)
    for in_features, out_features in ((1024, 4096), (4096, 1024)):  # the MLP of ViT-L
        yield Case(48, 257, in_features, out_features, 1024)
        yield Case(8, 257, in_features, out_features, 128, providers=SMALL_RANK_PROVIDERS)
    for out_features in (2304, 768, 3072):  # ViT-B/16
        yield Case(48, 197, 768, out_features, 768)
    yield Case(48, 197, 3072, 768, 768)
    for tokens in (50, 577):
        yield replace(qkv, tokens=tokens)
    yield replace(qkv, dtype=torch.float16)
    # kernels of their own: scales that are frozen, and the first trained layer, before which nothing needs a gradient
    halves = [qkv, replace(qkv, tokens=50), *(replace(qkv, kind=kind) for kind in ("bank", "shared"))]
    halves += [replace(qkv, rank=rank, batch=batch) for rank in (1024, 128, 64) for batch in (48, 1)][1:]
    halves += [replace(qkv, batch=8)]
    halves += [replace(qkv, dtype=dtype) for dtype in (torch.float16, torch.float32)]
    for layer in halves:
        yield replace(layer, modes=("backward of x", "backward of scale"), providers=("hystar_fast",))
    yield replace(qkv, dtype=torch.float32, providers=("plain linear", "two GEMMs", "hystar_fast"))
