"""Shifting, scaling and turning pictures at random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hystar_fast.data.displacement import (
    DISPLACEMENT,
    TURN,
    displace,
    displace_queries,
    draw_placements,
    place,
    place_randomly,
)
from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.data.images import ResizeTo


def pictures(images: ImageSet, style: str) -> Tensor:
    return torch.cat([part for _, part in read_images(images, images.of_style(style), ResizeTo((64, 64)), [])])


def test_displacement_depends_on_the_seed_and_keeps_the_gallery():
    images = load_emoji("test").select(limit=40)
    moved = displace(images, 0.2, seed=3)
    assert torch.equal(pictures(moved, "noto"), pictures(images, "noto"))
    for style in images.query_styles:
        assert not torch.equal(pictures(moved, style), pictures(images, style))
        assert torch.equal(pictures(moved, style), pictures(displace(images, 0.2, seed=3), style))
    assert not torch.equal(pictures(moved, "sketch"), pictures(displace(images, 0.2, seed=4), "sketch"))
    assert torch.equal(pictures(displace(images, 0.0), "sketch"), pictures(images, "sketch"))


def test_a_placement_belongs_to_a_gallery_picture_and_a_style():
    """The first style draws a row for each of the 40 gallery pictures, also for those without an outline."""
    images = load_emoji("test").select(limit=40)
    generator = torch.Generator().manual_seed(0)
    drawn = {style: (2 * torch.rand(40, 3, generator=generator) - 1) * 0.15 for style in images.query_styles}
    rows = {record.instance: i for i, record in enumerate(images.gallery)}
    assert len(images.of_style("outline")) < 40
    for style in ("outline", "sketch"):
        chosen = [rows[record.instance] for record in images.of_style(style)]
        placements = torch.cat([drawn[style][chosen], torch.zeros(len(chosen), 1)], dim=1)  # no turn
        expected = place(pictures(images, style).float() / 255, placements)
        found = pictures(displace(images, 0.15), style)
        assert torch.equal(found, (expected.clamp(0, 1) * 255).round().to(torch.uint8))


def test_placement_shifts_right_and_down_and_scales():
    dot = torch.ones(1, 3, 9, 9)
    dot[..., 4, 4] = 0
    left_up = place(dot, torch.tensor([[0.0, 2 / 9, 1 / 9, 0.0]]))
    assert left_up[0, 0].argmin() == 3 * 9 + 2
    half = place(torch.zeros(1, 3, 8, 8), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # half the size: a white frame comes in
    assert half[0, 0].sum() == 64 - 16 and half[0, 0, 2:6, 2:6].max() == 0


def test_placement_turns_about_the_middle_and_keeps_the_proportions():
    wide = torch.ones(1, 3, 12, 20)
    wide[..., 5:7, 11:15] = 0  # 4 pixels wide and 2 high, 1 to the right of the middle
    for turn, rows in ((90.0, slice(7, 11)), (-90.0, slice(1, 5))):
        found = place(wide, torch.tensor([[0.0, 0.0, 0.0, turn]]))[0, 0] < 0.5
        assert found.sum() == 8 and bool(found[rows, 9:11].all()), turn


def test_the_queries_of_the_main_protocol_are_shifted_scaled_and_turned_within_their_bounds():
    images = load_emoji("val").select(limit=30)
    found, again = (pictures(displace_queries(images), "sketch") for _ in range(2))
    assert torch.equal(found, again) and not torch.equal(found, pictures(displace(images, DISPLACEMENT), "sketch"))
    drawn = draw_placements(2000, DISPLACEMENT, torch.Generator().manual_seed(0), turn=TURN)
    assert drawn is not None and drawn.shape == (2000, 4)
    bounds = torch.tensor([0.15, 0.15, 0.15, 10.0])
    assert bool((drawn.abs().amax(0) <= bounds).all() and (drawn.amax(0) > 0.99 * bounds).all())
    assert bool((drawn.amin(0) < -0.99 * bounds).all())
    with pytest.raises(ValueError, match=r"turn must be at least 0 and at most 180 degrees, got -1"):
        draw_placements(1, 0.1, torch.Generator(), turn=-1)


def test_placement_keeps_white_pixels_and_changes_nothing_at_zero():
    generator = torch.Generator().manual_seed(0)
    white = torch.ones(4, 3, 16, 16)
    assert torch.allclose(place_randomly(white, 0.3, generator), white)
    noise = torch.rand(4, 3, 16, 16)
    assert place_randomly(noise, 0.0, generator) is noise
    with pytest.raises(ValueError, match=r"jitter must be at least 0 and below 1, got 1.5"):
        place_randomly(noise, 1.5, generator)
