"""Architectures of torchvision, open_clip and torch itself, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
import torchvision.models as vision
from torch import Tensor, nn
from torchvision.models import convnext
from torchvision.models import swin_transformer as swin

import tests.support.small_timm  # noqa: F401, registers its models

_HEADS = {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "mlp_ratio": 2.0, "num_classes": 7}
_TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "VisionTransformer": lambda: vision.VisionTransformer(64, 16, 2, 4, 32, 64, num_classes=7),
    "SwinTransformer": lambda: vision.SwinTransformer([4, 4], window_size=[4, 4], **_HEADS),
    "SwinTransformerV2": lambda: vision.SwinTransformer(
        [4, 4],
        window_size=[4, 4],
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
        **_HEADS,
    ),
    "MaxVit": lambda: vision.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=7),
    "ConvNeXt": lambda: vision.ConvNeXt([convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)], 0.0),
    "resnet18": lambda: vision.resnet18(num_classes=7),
    "mobilenet_v3_small": lambda: vision.mobilenet_v3_small(num_classes=7),
    "densenet121": lambda: vision.DenseNet(8, (1, 1), 8, num_classes=7),
    "shufflenet_v2_x0_5": lambda: vision.shufflenet_v2_x0_5(num_classes=7),
    "regnet_y_400mf": lambda: vision.regnet_y_400mf(num_classes=7),
}
_VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
_TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
_DECODER = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 1}
_OWN = {"block_type": "custom", "scale_attn": True, "scale_fc": True}
_OPEN_CLIP: dict[str, Callable[[], nn.Module]] = {
    "CLIP": lambda: open_clip.CLIP(32, _VISION, _TEXT),
    "CLIP, its own attention": lambda: open_clip.CLIP(32, {**_VISION, **_OWN, "qk_norm": True}, _TEXT),
    "CLIP, attentional pool": lambda: open_clip.CLIP(
        32, {**_VISION, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 3}, _TEXT
    ),
    "CLIP, ResNet": lambda: open_clip.CLIP(
        32, {"image_size": 32, "layers": [1] * 4, "width": 8, "head_width": 8}, _TEXT
    ),
    "CLIP, timm": lambda: open_clip.CustomTextCLIP(
        32, {"image_size": 32, "timm_model_name": "small_eva02", "timm_pool": "token", "timm_proj": "linear"}, _TEXT
    ),
    "CoCa": lambda: _coca(),
}
_SIZES: dict[str, Any] = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "dropout": 0.0}
_TORCH: dict[str, Callable[[], nn.Module]] = {
    "Transformer": lambda: nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **_SIZES),
    "TransformerEncoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(batch_first=True, **_SIZES), 2),
    "TransformerEncoder, norm first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(norm_first=True, activation="gelu", **_SIZES), 2
    ),
    "TransformerDecoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**_SIZES), 2),
}


def builders() -> dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]:
    """Return what builds each model and the arguments of its forward, by its name."""
    found: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}
    for library, models, inputs in (
        ("torchvision", _TORCHVISION, _picture),
        ("open_clip", _OPEN_CLIP, _picture_and_text),
        ("torch", _TORCH, _sequences),
    ):
        found |= {f"{library} {name}": partial(_built, build, inputs) for name, build in models.items()}
    return found


def _built(build: Callable[[], nn.Module], inputs: Callable[[nn.Module], Any]) -> tuple[nn.Module, dict[str, Any]]:
    model = build()
    return model, inputs(model)


def _coca() -> nn.Module:
    text = {**_TEXT, "embed_cls": True, "output_tokens": True}
    picture = {**_VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    model = open_clip.CoCa(32, {**_DECODER}, text, picture)
    nn.init.normal_(model.text_decoder.text_projection)  # open_clip leaves it uninitialised
    return model


def _picture(_: nn.Module) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 3, 64, 64)}


def _picture_and_text(_: nn.Module) -> dict[str, Tensor]:
    return {"image": torch.randn(2, 3, 32, 32), "text": torch.randint(1, 64, (2, 12))}


def _sequences(model: nn.Module) -> dict[str, Tensor]:
    first, second = torch.randn(5, 2, 32), torch.randn(4, 2, 32)
    if isinstance(model, nn.TransformerEncoder):
        return {"src": first}
    return {"tgt": second, ("src" if isinstance(model, nn.Transformer) else "memory"): first}
