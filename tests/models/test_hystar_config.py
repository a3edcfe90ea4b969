"""HystarConfig: the pinned defaults, the round trip through JSON, and errors that name the field."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hystar_fast.models.config import HystarConfig, default_blocks, resolve_blocks

PINNED = {
    "backbone": "open_clip:ViT-L-14",
    "pretrained": "openai",
    "style": "dinov2",
    "style_pretrained": "facebook/dinov2-base",
    "blocks": (4, 7, 10, 13),
    "rank": None,
    "temperature": 0.07,
    "gamma": 80.0,
    "lam": 1.0,
    "epsilon": 0.1,
    "n_iter": 50,
    "weights": "paper",
    "plan_grad": "none",
}


def test_defaults_are_pinned() -> None:
    config = HystarConfig()
    assert {name: getattr(config, name) for name in PINNED} == PINNED


def test_it_is_frozen_and_hashable() -> None:
    config = HystarConfig(blocks=[3, 1])
    assert config.blocks == (1, 3)
    assert hash(config) == hash(replace(config))
    with pytest.raises(FrozenInstanceError):
        config.rank = 3  # type: ignore[misc]


@given(
    st.builds(
        HystarConfig,
        backbone=st.sampled_from(["tiny", "open_clip:ViT-B-32", "transformers:a/b", "albef:/x"]),
        pretrained=st.none() | st.text(min_size=1),
        style=st.sampled_from(["dinov2", "clip", "vgg", "prefix"]),
        blocks=st.none() | st.sets(st.integers(1, 40)).map(tuple),
        rank=st.none() | st.integers(1, 9),
        image_size=st.none() | st.integers(1, 512),
        gamma=st.just("auto") | st.floats(1e-3, 1e3),
        epsilon=st.floats(1e-6, 10),
        static=st.booleans(),
    )
)
def test_json_round_trip(config: HystarConfig) -> None:
    assert HystarConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paths_become_strings() -> None:
    assert HystarConfig(pretrained=Path("/a/b.pt")).pretrained == "/a/b.pt"


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (24, (4, 7, 10, 13)),
        (12, (2, 4, 6)),
        (6, (1, 2, 3)),
        (1, (1,)),
        (14, (2, 5, 7)),
        (16, (3, 5, 8)),
        (17, (3, 5, 7, 9)),
        (32, (5, 9, 13, 17)),
    ],
)
def test_blocks_follow_the_depth(depth: int, blocks: tuple[int, ...]) -> None:
    assert default_blocks(depth) == blocks
    assert resolve_blocks(None, depth, "tiny") == blocks
    assert resolve_blocks((), depth, "tiny") == ()


def test_blocks_outside_the_backbone() -> None:
    with pytest.raises(
        ValueError, match=r"blocks must lie within 1\.\.6.*'tiny'.*got \(4, 7\).*blocks=None.*\(1, 2, 3\)"
    ):
        resolve_blocks((4, 7), 6, "tiny")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"backbone": "ViT-L-14"}, ValueError),
        ({"backbone": "timm:vit"}, ValueError),
        ({"backbone": "open_clip:"}, ValueError),
        ({"backbone": None}, TypeError),
        ({"pretrained": ""}, TypeError),
        ({"pretrained": 3}, TypeError),
        ({"style": "gram"}, ValueError),
        ({"style_pretrained": True}, TypeError),
        ({"style_normalization": "none"}, ValueError),
        ({"hypernetwork_init": "ones"}, ValueError),
        ({"blocks": 4}, TypeError),
        ({"blocks": "47"}, TypeError),
        ({"blocks": (1.0,)}, TypeError),
        ({"blocks": (True,)}, TypeError),
        ({"blocks": (0, 1)}, ValueError),
        ({"blocks": (2, 2)}, ValueError),
        ({"rank": 0}, ValueError),
        ({"rank": 1.5}, TypeError),
        ({"temperature": 0.0}, ValueError),
        ({"temperature": float("nan")}, ValueError),
        ({"gamma": -1.0}, ValueError),
        ({"gamma": "automatic"}, TypeError),
        ({"lam": float("inf")}, ValueError),
        ({"epsilon": 0}, ValueError),
        ({"n_iter": 0}, ValueError),
        ({"n_iter": True}, TypeError),
        ({"weights": "mine"}, ValueError),
        ({"plan_grad": "full"}, ValueError),
        ({"static": 1}, TypeError),
        ({"image_size": 0}, ValueError),
        ({"image_size": "384"}, TypeError),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], error: type[Exception]) -> None:
    (name,) = fields
    with pytest.raises(error, match=name):
        HystarConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ({"style": "vgg"}, True),
        ({"style": "vgg", "style_pretrained": None}, False),
        ({"style": "vgg", "style_pretrained": "IMAGENET1K_V1"}, False),
        ({"style": "dinov2"}, False),
        ({"style": "clip"}, False),
    ],
)
def test_vgg_lacks_weights_until_they_are_named(fields: dict[str, Any], lacks: bool) -> None:
    assert HystarConfig(**fields).lacks_style_weights is lacks


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"values must hold fields of HystarConfig .*, got layers"):
        HystarConfig.from_dict({"layers": 3})
    with pytest.raises(TypeError, match="mapping"):
        HystarConfig.from_dict([1])  # type: ignore[arg-type]
