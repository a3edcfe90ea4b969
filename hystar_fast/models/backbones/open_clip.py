"""Models of open_clip with a vision transformer, its own or one of timm, frozen."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.data.images import Normalise, Resize, ResizeTo
from hystar_fast.models.backbones.eva import create_tower
from hystar_fast.models.backbones.tower import Affine, TowerBackbone, VisionTower
from hystar_fast.models.random_weights import repeatable_weights
from hystar_fast.nn.attention import SVDAttention, attend
from hystar_fast.nn.views import own_tensor

_VISUAL_PARTS = ("conv1", "class_embedding", "positional_embedding", "transformer", "proj", "_embeds", "_pool")
_BLOCK_PARTS = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")
_AT = re.compile(r"@(\d+)(px)?")
_STORED = ("local-dir:", "hf-hub:")  # these hold their settings beside their weights
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipTower(VisionTower):
    """VisionTransformer of open_clip, with nn.MultiheadAttention or with open_clip's own attention."""

    blocks_at = "transformer.resblocks"

    def check(self, visual: Any) -> None:
        missing = [part for part in _VISUAL_PARTS if not hasattr(visual, part)]
        if missing:
            raise ValueError(
                "backbone must have a VisionTransformer of open_clip 3.x or of timm as image tower, "
                f"got {type(visual).__name__}, which has no {', '.join(missing)}"
            )
        if getattr(visual, "pool_type", None) == "none":
            raise ValueError("backbone must pool its tokens into one embedding for each image, got pool_type='none'")
        for block in visual.transformer.resblocks:
            absent = [part for part in _BLOCK_PARTS if not hasattr(block, part)]
            if absent or not hasattr(block.attn, "in_proj_weight"):
                raise ValueError(
                    f"backbone blocks must have {', '.join(_BLOCK_PARTS)} and attention with a packed in_proj_weight, "
                    f"got {type(block).__name__} with {type(block.attn).__name__}"
                )

    def widths(self, visual: Any) -> tuple[int, int]:
        embed_dim = visual.ln_post.weight.shape[0] if visual.proj is None else visual.proj.shape[1]
        return int(visual.conv1.out_channels), int(embed_dim)

    def patch_weight(self, visual: Any) -> Tensor:
        return visual.conv1.weight

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        return visual._embeds(images.to(visual.conv1.weight.dtype))

    def run_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *shared: Tensor
    ) -> Tensor:
        attended = _attend(block.attn, block.ln_1(x), delta_s)
        if hasattr(block, "ln_attn"):
            attended = block.ln_attn(attended)
        x = x + block.ls_1(attended)
        return x + block.ls_2(self.run_mlp(block.mlp, block.ln_2(x), mlp_delta_s))

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        pooled, _ = visual._pool(x)
        return own_tensor(pooled if visual.proj is None else pooled @ visual.proj)

    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        if isinstance(attention, nn.MultiheadAttention):
            return SVDAttention.from_mha(attention, rank)
        norms = [getattr(attention, part, nn.Identity()) for part in ("ln_q", "ln_k", "ln_inner")]
        scales = [getattr(attention, part, None) for part in ("logit_scale", "head_scale")]
        if not all(isinstance(norm, nn.Identity) for norm in norms) or any(scale is not None for scale in scales):
            raise ValueError(
                f"blocks must have plain softmax attention to be modulated, got {type(attention).__name__}, "
                "which normalises or scales its heads"
            )
        out_features, in_features = attention.in_proj_weight.shape
        packed = nn.Linear(in_features, out_features, attention.in_proj_bias is not None, device="meta")
        packed.weight, packed.bias = attention.in_proj_weight, attention.in_proj_bias
        return SVDAttention.from_linears([packed], attention.out_proj, attention.num_heads, rank)

    def projections(self, attention: Any) -> list[Affine]:
        return [Affine(attention, "in_proj_weight", "in_proj_bias")]

    def around_blocks(self, visual: Any) -> list[nn.Module]:
        return [visual.conv1, visual.ln_pre, visual.ln_post]


class OpenClipBackbone(TowerBackbone):
    """Frozen model of open_clip with a vision transformer.

    Args:
        clip: the open_clip model; its parameters are frozen here.
        resize: Pillow image -> uint8 [3, H, W].
        normalise: uint8 -> the input of the image tower.
        tokenizer: texts -> token ids [B, L].

    Raises:
        ValueError: the image tower is not a vision transformer that this loop can run.
    """

    def __init__(
        self,
        clip: nn.Module,
        resize: Resize,
        normalise: Normalise,
        tokenizer: Callable[[Any], Tensor],
    ) -> None:
        visual: Any = clip.visual
        is_timm = hasattr(visual, "trunk")
        super().__init__(create_tower(visual.trunk, "trunk", "head") if is_timm else OpenClipTower(), "clip.visual")
        self.clip = clip.requires_grad_(False).eval()
        self.tower.check(visual)
        self.depth = len(self.blocks)
        self.width, self.embed_dim = self.tower.widths(visual)
        height, width = visual.image_size
        self.image_size = (int(height), int(width))
        self.resize, self.normalise = resize, normalise
        self.tokenizer = tokenizer

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens)
        clip: Any = self.clip
        return own_tensor(clip.encode_text(tokens))


def _attend(attention: Any, x: Tensor, delta_s: Tensor | None) -> Tensor:
    if isinstance(attention, SVDAttention):
        return attention(x, delta_s)
    if not isinstance(attention, nn.MultiheadAttention):
        return attention(x)  # open_clip's own
    B, T, D = x.shape
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.view(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attend(query, key, value)
    return attention.out_proj(mixed.transpose(1, 2).reshape(B, T, D))


def load_open_clip(
    name: str, pretrained: str | None, image_size: int | None = None, pretrained_tag: str | None = None
) -> OpenClipBackbone:
    """Load a model of open_clip on the default device.

    Args:
        name: a name of ``open_clip.list_models()``, also in OpenAI's spelling ``ViT-L/14@336px``,
            ``local-dir:<path>`` or ``hf-hub:<id>``.
        pretrained: a tag or a local file; with ``local-dir:`` and ``hf-hub:`` any value but None means the weights that
            are stored there; None means random weights, the same every time.
        image_size: None means that of the model; for any other open_clip resizes the position embeddings.
        pretrained_tag: of the weights in a local file, see :class:`HystarConfig`.
    """
    clip, tokenizer = create_open_clip(name, pretrained, image_size, pretrained_tag)
    return OpenClipBackbone(clip, *image_processing(clip.visual), tokenizer)


def create_open_clip(
    name: str, pretrained: str | None, image_size: int | None = None, pretrained_tag: str | None = None
) -> tuple[Any, Callable[[Any], Tensor]]:
    """Return a model of open_clip and its tokenizer; the arguments are those of `load_open_clip`.

    Raises:
        ValueError: an unknown model, or weights that cannot be loaded.
    """
    import open_clip

    settings: dict[str, Any] = {} if image_size is None else {"force_image_size": image_size}
    tags = tags_of(name)
    if pretrained_tag is not None and (pretrained_tag not in tags or pretrained in tags):
        raise ValueError(
            f"pretrained_tag must be a tag of {name!r} ({', '.join(tags) or 'it has none'}) for a file `pretrained`, "
            f"got {pretrained_tag!r} with pretrained={pretrained!r}"
        )
    if name.startswith(_STORED):
        settings |= {"load_weights": pretrained is not None, "require_pretrained": pretrained is not None}
    else:
        name = _plain(name)
        _check_weights(name, pretrained, tags)
        tag = tags.get(pretrained or "") or _settings_of_file(name, pretrained, pretrained_tag, tags)
        # On a mismatch open_clip only warns, and computes with another activation than the weights were trained with.
        settings |= {"pretrained": pretrained, "force_quick_gelu": bool(tag.get("quick_gelu"))}
        settings |= {"force_preprocess_cfg": {key: tag[key] for key in _PREPROCESSING if key in tag}}
    try:
        with repeatable_weights():
            clip = open_clip.create_model(name, device=torch.get_default_device(), pretrained_text=False, **settings)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # damaged or missing weights can raise anything
        raise ValueError(
            f"backbone 'open_clip:{name}' with pretrained={pretrained!r} could not be loaded: {error}"
        ) from error
    return clip, tokenizer


def tags_of(name: str) -> dict[str, dict[str, Any]]:
    """Return the settings (``mean``, ``std``, ``resize_mode``, ``quick_gelu``, ...) of every tag of a model."""
    import open_clip

    name = _plain(name)
    tags = [] if name.startswith(_STORED) else open_clip.list_pretrained_tags_by_model(name)
    return {tag: open_clip.get_pretrained_cfg(name, tag) for tag in tags}


def _plain(name: str) -> str:
    """Return OpenAI's spelling of a name, ViT-L/14@336px, as open_clip's."""
    return name if name.startswith(_STORED) else _AT.sub(r"-\1", name.replace("/", "-"))


def _settings_of_file(
    name: str, pretrained: str | None, pretrained_tag: str | None, tags: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the settings of the weights in a file: those of its tag, or those that all tags of the model share."""
    if pretrained_tag is not None:
        return tags[pretrained_tag]
    if pretrained is None:
        return {}
    keys = ("quick_gelu", *_PREPROCESSING)
    kinds = [{key: tag[key] for key in keys if tag.get(key)} for tag in tags.values()]
    differing = sorted({key for key in keys for kind in kinds if kind.get(key) != kinds[0].get(key)})
    if differing:
        warnings.warn(
            f"pretrained={pretrained!r} holds no {' and no '.join(differing)}, and the tags of {name!r} differ in it: "
            f"the model's own is used. Name the tag that the weights are, or were tuned from: pretrained_tag="
            f"{' or '.join(map(repr, tags))}",
            stacklevel=4,
        )
    return {} if differing or not kinds else kinds[0]


_FITS = {"shortest": "crop", "squash": "squash", "longest": "pad"}


def image_processing(visual: Any) -> tuple[ResizeTo, Normalise]:
    """Return how open_clip resizes and normalises pictures for an image tower, from its ``preprocess_cfg``."""
    config = visual.preprocess_cfg
    size = config.get("size", visual.image_size)
    rows, columns = (size, size) if isinstance(size, int) else size
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    fit = _FITS[config.get("resize_mode") or "shortest"]
    resize = ResizeTo((int(rows), int(columns)), fit, interpolation, config.get("fill_color", 0))
    return resize, Normalise(_channels(config["mean"]), _channels(config["std"]))


def _channels(statistic: float | Sequence[float]) -> tuple[float, ...]:
    return (float(statistic),) * 3 if isinstance(statistic, (int, float)) else tuple(map(float, statistic))


def load_tiny(pretrained: str | None) -> OpenClipBackbone:
    """Load the packaged tiny model."""
    from hystar_fast.models.tiny import NORMALISE, RESIZE, create_tiny

    if pretrained not in (None, "packaged") and not Path(str(pretrained)).is_file():
        raise ValueError(f'pretrained for backbone "tiny" must be "packaged", a file or None, got {pretrained!r}')
    with repeatable_weights():
        clip, tokenizer = create_tiny(pretrained)
    return OpenClipBackbone(clip, RESIZE, NORMALISE, tokenizer)


def _check_weights(name: str, pretrained: str | None, tags: Collection[str]) -> None:
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f"backbone must be a model of open_clip.list_models(), got 'open_clip:{name}'")
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        known = ", ".join(tags)
        raise ValueError(f"pretrained must be a tag of {name!r} ({known}), a file or None, got {pretrained!r}")
    if pretrained is not None and pretrained not in tags and _is_torchscript(pretrained):
        raise ValueError(
            f"pretrained must be a file of tensors, got the TorchScript program {pretrained!r}, as OpenAI publishes "
            "its models, which could run code when it is loaded. Use the tag pretrained='openai', which downloads the "
            "same weights, or, if you trust the file, write its tensors once: "
            f"w = torch.jit.load({pretrained!r}, map_location='cpu').state_dict(); "
            "torch.save({k: v for k, v in w.items() if v.is_floating_point()}, 'weights.pt'), "
            "and use pretrained='weights.pt' with pretrained_tag='openai'"
        )


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
