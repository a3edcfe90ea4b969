"""The choice of regions in training: both other estimates of the gradient against their dense definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.regions import hard_top_k
from hystar_fast.methods.fgan.selection import evaluation_selector, training_selector
from hystar_fast.ref.perturbed_topk import normal_noise, soft_topk

B, N, K, SAMPLES, SIGMA = 3, 6, 2, 40, 0.3


def scores() -> torch.Tensor:
    return torch.rand(B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the one-hot rows [B, S, K, N] of every sample and its noise, which is 0 where nothing may be chosen."""
    noise = normal_noise(values, SAMPLES, torch.Generator().manual_seed(7)).double()
    moved = values[:, None] + SIGMA * noise
    hidden = torch.zeros_like(values, dtype=torch.bool) if mask is None else mask
    rows = torch.stack([hard_top_k(moved[:, s], K, hidden) for s in range(SAMPLES)], dim=1)
    return rows, noise.masked_fill(hidden[:, None], 0)


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_are_those_of_the_definition(jacobian: str, masked: bool) -> None:
    mask = torch.zeros(B, N, dtype=torch.bool)
    if masked:
        mask[0, 2:], mask[1, 1:] = True, True  # as many as K, and fewer
    values, upstream = scores().requires_grad_(), torch.randn(B, K, N, dtype=torch.float64)
    config = FGANConfig(sigma=SIGMA, samples=SAMPLES, jacobian=jacobian, control_variate=False)
    found = training_selector(config, torch.Generator().manual_seed(7))(values, K, mask)
    rows, noise = dense(values.detach(), mask)
    torch.testing.assert_close(found, rows.mean(1), rtol=0, atol=1e-12)
    (found * upstream).sum().backward()
    if jacobian == "full":
        expected = torch.einsum("bkn,bskn,bsm->bm", upstream, rows, noise)
    else:
        expected = torch.einsum("bkn,bskn,bsn->bn", upstream, rows, noise)
    torch.testing.assert_close(values.grad, expected / (SAMPLES * SIGMA), rtol=0, atol=1e-12)
    assert bool((values.grad[mask] == 0).all())


def test_the_diagonal_lacks_what_other_scores_do() -> None:
    gap, sigma = 0.02, 0.05
    slope = math.exp(-((gap / sigma) ** 2) / 4) / (2 * math.sqrt(math.pi) * sigma)  # phi(gap / (sigma sqrt 2)) / ...
    for jacobian, expected in (("full", [slope, -slope]), ("diagonal", [slope, 0.0])):
        values = torch.tensor([[gap, 0.0]], requires_grad=True)
        config = FGANConfig(sigma=sigma, samples=200_000, jacobian=jacobian, control_variate=False)
        found = training_selector(config, torch.Generator().manual_seed(0))(values, 1, None)
        found[0, 0, 0].backward()
        torch.testing.assert_close(values.grad[0], torch.tensor(expected), rtol=0, atol=0.15)


def test_the_settings_choose_the_estimate() -> None:
    gradients = {}
    options = {"full": {}, "plain": {"control_variate": False}, "diagonal": {"jacobian": "diagonal"}}
    for name, changed in options.items():
        config = FGANConfig(sigma=SIGMA, samples=SAMPLES, **changed)
        values = scores().float().requires_grad_()
        select = training_selector(config, torch.Generator().manual_seed(7))
        found = select(values, K, None)
        noise = normal_noise(values, SAMPLES, torch.Generator().manual_seed(7))
        torch.testing.assert_close(found, soft_topk(values.detach(), noise, K, SIGMA))
        (found * torch.arange(N)).sum().backward()
        gradients[name] = values.grad
    torch.testing.assert_close(gradients["full"].sum(1), torch.zeros(B), rtol=0, atol=1e-4)
    assert not torch.allclose(gradients["full"], gradients["plain"])
    assert not torch.allclose(gradients["plain"], gradients["diagonal"])


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_nan_in_one_item_stays_there_and_an_unknown_estimate_is_refused(jacobian: str) -> None:
    values = scores()
    values[1, 0] = math.nan
    config = FGANConfig(sigma=SIGMA, samples=SAMPLES, jacobian=jacobian, control_variate=False)
    found = training_selector(config)(values, K, None)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()
    with pytest.raises(ValueError, match=r"fgan\.jacobian must be one of 'full', 'diagonal', got 'half'"):
        FGANConfig(jacobian="half")


@pytest.mark.parametrize("changed", [{"control_variate": False}, {"jacobian": "diagonal"}])
def test_autocast_does_not_round_the_gradient(changed: dict[str, object]) -> None:
    gradients = []
    for enabled in (False, True):
        values = scores().float().requires_grad_()
        select = training_selector(
            FGANConfig(sigma=SIGMA, samples=SAMPLES, **changed), torch.Generator().manual_seed(7)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = select(values, K, None)
        (found * torch.arange(N)).sum().backward()
        gradients.append(values.grad)
    assert torch.equal(*gradients)


def test_evaluation_is_hard_or_noisy_in_the_same_way_every_time() -> None:
    values = scores().float()
    assert evaluation_selector(FGANConfig()) is hard_top_k
    select = evaluation_selector(FGANConfig(perturb_at_evaluation=True, sigma=SIGMA, samples=SAMPLES))
    first = select(values, K, None)
    assert torch.equal(first, select(values, K, None)) and not torch.equal(
        first, F.one_hot(first.argmax(-1), N).float()
    )
