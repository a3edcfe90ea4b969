"""Emulate svd_linear in e4m3 and measure its loss of accuracy: the table of docs/algorithms/svd_linear.md.

python bench/fp8_error.py prints it, and with --adapter the retrieval of a trained model in fp8. It needs no GPU and
measures no speed: torch rounds the values to e4m3, and they are multiplied in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.retrieval.metrics import Interval

E4M3_MAX = 448.0
Quantise = Callable[[Tensor], Tensor]


def by_scale(a: Tensor, scale: Tensor) -> Tensor:
    """Round a to e4m3 times a scale that broadcasts against it."""
    scale = scale.clamp_min(1e-30)
    return (a / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale


def by_row(a: Tensor) -> Tensor:
    """Round a with one scale for each row."""
    return by_scale(a, a.abs().amax(-1, keepdim=True) / E4M3_MAX)


def by_tensor(a: Tensor) -> Tensor:
    """Round a with one scale for the tensor."""
    return by_scale(a, a.abs().max() / E4M3_MAX)


def by_block(a: Tensor) -> Tensor:
    """Round a with one scale for every 128 values of a row."""
    return by_row(a.view(*a.shape[:-1], -1, 128)).view(a.shape)


def half(a: Tensor) -> Tensor:
    """Round a to bfloat16."""
    return a.bfloat16().float()


def hadamard(a: Tensor) -> Tensor:
    """Rotate the last dimension, a power of two, by the orthonormal Hadamard matrix."""
    size = a.shape[-1]
    step = 1
    while step < size:
        pairs = a.reshape(*a.shape[:-1], -1, 2, step)
        a = torch.cat((pairs[..., :1, :] + pairs[..., 1:, :], pairs[..., :1, :] - pairs[..., 1:, :]), -2)
        a = a.reshape(*a.shape[:-3], size)
        step *= 2
    return a / size**0.5


def factored(
    x: Tensor, u: Tensor, s: Tensor, vh: Tensor, qx: Quantise, qv: Quantise, qg: Quantise | None, qu: Quantise
) -> Tensor:
    """Return y with each operand rounded; if `qg` is None, g as shipped, by the bound ||x|| max_j |s_j| ||vh_j||."""
    g = (qx(x) @ qv(vh).t()) * s
    if qg is None:
        bound = (s.abs() * vh.norm(dim=1)).max()
        g = by_scale(g, x.norm(dim=1, keepdim=True) * bound / E4M3_MAX)
    else:
        g = qg(g)
    return g @ qu(u).t()


def inputs(kind: str, tokens: int, in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
    """Return x and a weight: "normal", "decaying" (its spectrum, a thousandfold), or also with "outliers" in x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, in_features, generator=generator)
    w = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    if kind != "normal":
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        w = (u * torch.logspace(0, -3, len(s))) @ vh
    if kind == "outliers":
        x[:, torch.randperm(in_features, generator=generator)[:4]] *= 100
    return x, w


def table(kind: str, tokens: int, in_features: int, out_features: int) -> dict[str, float]:
    """Return the relative error of every scheme against float64."""
    x, w = inputs(kind, tokens, in_features, out_features)
    u, s, vh = (a.float() for a in torch.linalg.svd(w.double(), full_matrices=False))
    truth = x.double() @ ((u.double() * s.double()) @ vh.double()).t()
    xr, vr = hadamard(x), hadamard(vh)
    results = {
        "plain linear, bf16": half(x) @ half(w).t(),
        "plain linear, fp8, a scale a row": by_row(x) @ by_row(w).t(),
        "bf16": factored(x, u, s, vh, half, half, half, half),
        "fp8, a scale a tensor": factored(x, u, s, vh, by_tensor, by_tensor, by_tensor, by_tensor),
        "fp8, a scale a row (true maximum of g)": factored(x, u, s, vh, by_row, by_row, by_row, by_row),
        "fp8, a scale a row (bound on g): what runs": factored(x, u, s, vh, by_row, by_row, None, by_row),
        "fp8, a scale for 128 values": factored(x, u, s, vh, by_block, by_block, by_block, by_block),
        "fp8, x and vh rotated": factored(xr, u, s, vr, by_row, by_row, by_row, by_row),
        "only the first product in fp8": factored(x, u, s, vh, by_row, by_row, half, half),
        "only the second product in fp8": factored(x, u, s, vh, half, half, by_row, by_row),
    }
    return {name: ((y.double() - truth).norm() / truth.norm()).item() for name, y in results.items()}


def retrieval(adapter: str) -> dict[str, tuple[Interval, ...]]:
    """Return R@1 on the embedded drawings with every FastSVDLinear in full precision and in fp8, and the difference."""
    from hystar_fast import FastSVDLinear, Hystar
    from hystar_fast.data.emoji import load_emoji
    from hystar_fast.methods.hystar_method import HystarMethod
    from hystar_fast.retrieval.evaluate import TEXT, evaluate
    from hystar_fast.retrieval.ranks import paired_difference

    model, images = Hystar.from_pretrained(adapter).eval(), load_emoji("test")
    kinds = (*images.query_styles, TEXT)
    with torch.no_grad():
        full = evaluate(HystarMethod(model), images, kinds=kinds).ranks
        for layer in model.modules():
            if isinstance(layer, FastSVDLinear):
                layer.precision = "fp8"
        fp8 = evaluate(HystarMethod(model), images, kinds=kinds).ranks
    found = {}
    for name, group in {**{kind: (kind,) for kind in kinds}, "all images": images.query_styles}.items():
        values = full.recall(group, 1), fp8.recall(group, 1), paired_difference(fp8, full, group)
        found[name] = tuple(value for value in values if value is not None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(1024, 1024, 3072), metavar=("TOKENS", "IN", "OUT"))
    parser.add_argument("--adapter", help="folder of a trained adapter, as hystar-fast demo writes: runs/demo/adapter")
    parser.add_argument(
        "--output", type=Path, help="with --adapter: JSON file of the figures, the machine and the commit"
    )
    arguments = parser.parse_args()
    if arguments.adapter:
        found = retrieval(arguments.adapter)
        sys.stdout.write("| R@1, % | full precision | fp8 | difference |\n|---|---|---|---|\n")
        for name, values in found.items():
            sys.stdout.write(f"| {name} | " + " | ".join(map(str, values)) + " |\n")
        if arguments.output is not None:
            from hystar_fast.retrieval.results_json import interval_info, run_info, write_json

            columns = ("full precision", "fp8", "difference")
            figures = {
                name: dict(zip(columns, map(interval_info, values), strict=True)) for name, values in found.items()
            }
            what = "R@1 in per cent with 95 % intervals; every FastSVDLinear in fp8, emulated on the CPU"
            write_json(arguments.output, {**run_info(), "what": what, "adapter": arguments.adapter, "recall": figures})
        return
    shape = arguments.shape
    columns = {kind: table(kind, *shape) for kind in ("normal", "decaying", "outliers")}
    sys.stdout.write("| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n")
    for name in columns["normal"]:
        sys.stdout.write(f"| {name} | " + " | ".join(f"{column[name]:.1e}" for column in columns.values()) + " |\n")


if __name__ == "__main__":
    main()
