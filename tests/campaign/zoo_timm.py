"""Architectures of timm, small and with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models.mvitv2 import MultiScaleVitCfg
from torch import nn

import tests.support.small_timm  # noqa: F401, registers its models

_FLAT = {"embed_dim": 32, "depth": 2, "num_heads": 4}
_STAGES = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}
_FOUR = {"depths": (1, 1, 1, 1)}
# The names of timm with what makes them small; "size" is the side of the picture where it is not 32.
_TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},
    "test_vit4": {},
    "test_vit_relpos": {},
    "small_eva": {},
    "small_eva_post_norm": {},
    "small_eva02": {},
    "small_eva02_packed_glu": {},
    "small_pe": {},
    "small_dinov3": {},
    "small_dinov3_dynamic": {},
    "small_mixed_rope": {},
    "small_beit": {},
    "small_beit_shared": {},
    "small_vitamin": {"depth": 2, "global_pool": "avg"},
    "deit3_small_patch16_224": _FLAT,
    "vit_small_patch16_18x2_224": _FLAT,
    "vit_little_patch16_reg1_gap_256": _FLAT,
    "vit_small_patch16_224": {**_FLAT, "qk_norm": True, "init_values": 0.1},
    "cait_xxs24_224": _FLAT,
    "xcit_nano_12_p16_224": _FLAT,
    "convit_tiny": _FLAT,
    "tnt_s_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads_outer": 4},
    "swin_tiny_patch4_window7_224": {**_STAGES, "window_size": 4},
    "swinv2_tiny_window8_256": {**_STAGES, "window_size": 4},
    "swinv2_cr_tiny_224": {**_STAGES, "window_size": 4, "size": 64},
    "twins_svt_small": {
        "embed_dims": [16, 32],
        "depths": [1, 1],
        "num_heads": [2, 4],
        "wss": [2, 2],
        "sr_ratios": [2, 1],
        "mlp_ratios": [2, 2],
    },
    "pvt_v2_b0": {**_FOUR, "embed_dims": (8, 16, 20, 32), "size": 64},
    "test_convnext": {"size": 64},
    "test_convnext2": {"size": 64},
    "inception_next_atto": {**_FOUR, "dims": (16, 16, 32, 32), "size": 64},
    "test_maxvit": {"size": 160},
    "test_coatnet": {"size": 160},
    "test_mambaout": {"size": 64},
    "levit_128s": {"embed_dim": (16, 32, 32), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "size": 64},
    "efficientformer_l1": {"size": 224},
    "edgenext_xx_small": {**_FOUR, "dims": (8, 16, 16, 32), "heads": (2, 2, 2, 2), "size": 64},
    "davit_tiny": {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (2, 2), "window_size": 4},
    "hiera_tiny_224": {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "size": (64, 64)},
    "sequencer2d_s": {
        "layers": (1, 1, 1, 1),
        "embed_dims": (16, 16, 16, 16),
        "hidden_sizes": (4, 4, 4, 4),
        "size": 56,
    },
    "mobilevitv2_050": {"size": 64},
    "tiny_vit_5m_224": {**_FOUR, "embed_dims": (16, 32, 32, 32), "num_heads": (2,) * 4, "window_sizes": (4,) * 4},
    "naflexvit_base_patch16_gap": _FLAT,
    "samvit_base_patch16": _FLAT,
    "crossvit_tiny_240": {"embed_dim": (16, 32), "num_heads": (2, 2), "depth": ((1, 1, 0),), "size": 240},
    "visformer_tiny": {"embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2},
    "test_resnet": {"size": 64},
    "test_efficientnet": {"size": 64},
    "test_nfnet": {"size": 64},
}
# Classes of timm.models whose functions do not take sizes.
_CLASSES: dict[str, dict[str, Any]] = {
    "mvitv2.MultiScaleVit": {
        "cfg": MultiScaleVitCfg(depths=(1, 1), embed_dim=(16, 32), num_heads=(1, 2)),
        "img_size": 64,
    },
    "mlp_mixer.MlpMixer": {"embed_dim": 32, "num_blocks": 2, "img_size": 32},
    "volo.VOLO": {
        "layers": (1, 1),
        "embed_dims": (32, 32),
        "num_heads": (2, 2),
        "mlp_ratio": 2.0,
        "img_size": 64,
        "downsamples": (False, False),
        "outlook_attention": (True, False),
    },
    "metaformer.MetaFormer": {**_FOUR, "dims": (8, 16, 16, 32), "size": 64},
    "focalnet.FocalNet": {"embed_dim": 16, "depths": (1, 1)},
    "nest.Nest": {"embed_dims": (16, 16, 32), "num_heads": (2,) * 3, "depths": (1,) * 3, "img_size": 32},
    "gcvit.GlobalContextVit": {**_FOUR, "num_heads": (1, 1, 2, 2), "embed_dim": 16, "img_size": 64},
    "pit.PoolingVisionTransformer": {
        "img_size": 64,
        "patch_size": 8,
        "stride": 8,
        "mlp_ratio": 2,
        "base_dims": (16, 16),
        "depth": (1, 1),
        "heads": (2, 2),
    },
    "coat.CoaT": {"embed_dims": (16, 16, 16, 16), "serial_depths": (1,) * 4, "img_size": 64, "patch_size": 4},
}


def builders() -> dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]:
    """Return what builds each model and the arguments of its forward, by its name."""
    named: Any = {f"timm {name}": partial(_by_name, name, options) for name, options in _TIMM.items()}
    return named | {f"timm {name}": partial(_by_class, name, options) for name, options in _CLASSES.items()}


def _by_name(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    options = dict(options)
    size = options.pop("size", 32)
    try:
        model = timm.create_model(name, num_classes=7, img_size=size, **options)
    except TypeError:  # not every model takes the size of its pictures
        model = timm.create_model(name, num_classes=7, **options)
    return model, _picture(size)


def _by_class(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    options, (file, kind) = dict(options), name.split(".")
    size = options.pop("size", options.get("img_size", 32))
    return getattr(importlib.import_module(f"timm.models.{file}"), kind)(num_classes=7, **options), _picture(size)


def _picture(size: int | tuple[int, int]) -> dict[str, Any]:
    height, width = size if isinstance(size, tuple) else (size, size)
    return {"x": torch.randn(2, 3, height, width)}
