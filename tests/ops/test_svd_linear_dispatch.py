"""The cost model of svd_linear: what it counts is what runs, and it picks the cheaper path."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hystar_fast as hf
from hystar_fast.ops.svd_linear import api as op
from hystar_fast.ops.svd_linear import cpu as svd_linear_cpu
from hystar_fast.ops.svd_linear.cost import (
    factored_cost,
    fused_shares,
    materialised_cost,
    materialising_is_cheaper,
)

INFERENCE = {"needs_dx": False, "needs_dscale": False}
TRAINING = {"needs_dx": True, "needs_dscale": True}
FIRST_LAYER = {"needs_dx": False, "needs_dscale": True}  # nothing before it is trained
FROZEN_SCALE = {"needs_dx": True, "needs_dscale": False}


@pytest.mark.parametrize(
    ("in_features", "out_features", "rank", "needs", "crossover"),
    [
        (1024, 3072, 1024, INFERENCE, 3072),  # ViT-L's packed qkv
        (1024, 1024, 1024, INFERENCE, 1024),  # T > d for a square full-rank layer
        (1024, 3072, 1024, TRAINING, None),
        (1024, 1024, 1024, TRAINING, 2048),
        (1024, 4096, 1024, INFERENCE, 4096),  # a static MLP layer
        (1024, 4096, 1024, TRAINING, None),
        (1024, 4096, 1024, FIRST_LAYER, 8192),
        (1024, 1024, 256, INFERENCE, None),  # a truncated layer is cheaper than the plain one
    ],
)
def test_crossover_in_tokens_a_style(
    in_features: int, out_features: int, rank: int, needs: dict[str, bool], crossover: int | None
) -> None:
    """The table of docs/algorithms/svd_linear.md."""
    shape = (rank, in_features, out_features)
    for styles in (1, 7):
        if crossover is None:
            assert not materialising_is_cheaper(10**9, styles, *shape, **needs)
        else:
            assert not materialising_is_cheaper(styles * crossover, styles, *shape, **needs)
            assert materialising_is_cheaper(styles * (crossover + 1), styles, *shape, **needs)


@pytest.mark.parametrize("needs", [INFERENCE, TRAINING, FIRST_LAYER, FROZEN_SCALE], ids=["none", "both", "scale", "x"])
@pytest.mark.parametrize("materialise", [False, True])
@pytest.mark.parametrize("styles", [1, 3])
def test_the_model_counts_what_runs_and_so_does_torch(
    styles: int, materialise: bool, needs: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, in_features, out_features, rank = 10, 12, 20, 8
    x, dy = torch.randn(styles, tokens, in_features), torch.randn(styles, tokens, out_features)
    u, scale, vh = torch.randn(out_features, rank), torch.randn(styles, rank), torch.randn(rank, in_features)
    with FlopCounterMode(display=False) as counter:
        _, saved = svd_linear_cpu.forward(x, u, scale, vh, None, None, materialise, True)
        svd_linear_cpu.backward(
            dy, x, u, scale, vh, None, saved, materialise, needs["needs_dx"], needs["needs_dscale"], False
        )
    shape = (rank, in_features, out_features)
    if materialise:
        expected = materialised_cost(styles * tokens, styles, *shape, **needs)
    else:
        expected = factored_cost(styles * tokens, *shape, **needs)
    assert counter.get_total_flops() == 2 * expected

    x.requires_grad_(needs["needs_dx"]), scale.requires_grad_(needs["needs_dscale"])
    monkeypatch.setattr(op, "materialising_is_cheaper", lambda *_, **__: materialise)
    with FlopCounterMode(display=False) as counter:
        y = hf.svd_linear(x, u, scale, vh)
        if y.requires_grad:
            y.backward(dy)
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize(
    ("batch", "tokens", "scale_rows", "bank", "trains", "expected"),
    [
        (16, 257, 16, False, False, False),  # a scale a sample: 257 tokens a style
        (16, 257, 0, False, False, True),  # a shared scale: 4112 tokens of one style
        (16, 257, 2, True, False, True),  # a bank of two: 2056 a style
        (16, 257, 16, True, False, False),
        (16, 257, 0, False, True, True),
        (8, 200, 0, False, True, False),  # 1600 tokens are too few for training, enough for inference
        (8, 200, 0, False, False, True),
    ],
)
def test_the_public_function_asks_the_model(
    batch: int,
    tokens: int,
    scale_rows: int,
    bank: bool,
    trains: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Squares of 1024 scaled down by 16, so that the crossovers are 64 and 128 tokens: the ratios stay."""
    picked: list[bool] = []

    def spy(*shape: int, **needs: bool) -> bool:
        picked.append(materialising_is_cheaper(*shape, **needs))
        return picked[-1]

    monkeypatch.setattr(op, "materialising_is_cheaper", spy)
    d = 64
    scale = torch.randn(*([scale_rows] if scale_rows else []), d, requires_grad=trains)
    x = torch.randn(batch, max(1, tokens // 16), d, requires_grad=trains)
    index = torch.zeros(batch, dtype=torch.long) if bank else None
    hf.svd_linear(x, torch.randn(d, d), scale, torch.randn(d, d), index=index)
    assert picked == [expected]


@pytest.mark.parametrize(
    ("tokens", "rank", "inner", "columns", "shares"),
    [
        (12336, 64, 1024, 3072, 1),  # ViT-L's qkv at batch 48: rows alone fill the GPU
        (2056, 64, 1024, 3072, 4),  # batch 8
        (257, 64, 1024, 3072, 24),  # batch 1: every tile of columns is a share
        (257, 128, 1024, 1024, 8),
        (
            2056,
            128,
            4096,
            1024,
            None,
        ),  # the second layer of an MLP: repeating its first product costs more than a launch
        (257, 128, 4096, 1024, 8),
        (12336, 129, 1024, 3072, None),  # the rank does not fit a tile
        (0, 64, 1024, 3072, None),
        (257, 64, 1024, 0, None),
    ],
)
def test_when_one_kernel_is_cheaper_than_two(
    tokens: int, rank: int, inner: int, columns: int, shares: int | None
) -> None:
    assert fused_shares(tokens, rank, inner, columns, itemsize=2, multiprocessors=132) == shares


def test_a_share_is_repeated_work() -> None:
    """More multiprocessors never make fewer shares, and no share is empty."""
    for tokens in (1, 64, 65, 1000, 5000):
        found = [fused_shares(tokens, 32, 512, 700, itemsize=2, multiprocessors=n) for n in (1, 40, 132)]
        assert found == sorted(found, key=int) and all(1 <= (n or 0) <= 6 for n in found)  # type: ignore[arg-type]


def test_a_sum_over_all_tokens_stays_out_of_float16() -> None:
    """dW would be a float16 sum over every token; the factored path sums in float32."""
    x = torch.full((1, 4096, 4), 8.0, dtype=torch.float16)
    eye = torch.eye(4, dtype=torch.float16)
    scale = torch.ones(4, requires_grad=True)
    hf.svd_linear(x, eye, scale, eye).backward(torch.full_like(x, 8.0))
    assert scale.grad is not None
    assert scale.grad.tolist() == [4096 * 64.0] * 4
