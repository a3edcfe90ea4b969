"""Hystar: a frozen vision-language model whose image encoder is modulated by the style of each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from hystar_fast.models.authors_checkpoint import AuthorsCheckpoint
from hystar_fast.models.backbones import Backbone, create_backbone
from hystar_fast.models.checkpoint import (
    Hashed,
    are_same_weights,
    check_tensors,
    fingerprint,
    read_adapter,
    write_adapter,
)
from hystar_fast.models.config import HystarConfig, resolve_blocks
from hystar_fast.models.style import PrefixStyle, StyleExtractor, create_style
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hypernetwork import Hypernetwork

_MLP = "mlp"  # before the block's number in the name of a hypernetwork that modulates its MLP
_AUTHORS_DESIGN: dict[str, Any] = {
    "static": True,
    "design": "original",
    "hypernetwork_width": None,
    "hypernetwork_depth": 2,
}


class Hystar(nn.Module):
    """A style-adaptive encoder: one model for pictures, sketches, low-resolution previews and text.

    ``W_b = U diag(s + Δs_stat + Δs_dyn(z_b)) Vᵀ`` (Eq. 1-2): the packed qkv weight of ``config.blocks`` takes
    Δs_dyn = Hypernetwork(z) of each image's style z; every MLP linear of the visual tower takes a learned Δs_stat;
    everything else is frozen. W_b is never built, and z is an argument all the way down to the weight.

    Args:
        config: what to build, see :class:`HystarConfig`.

    Gradients: for the hypernetworks and the static offsets.

    With ``style="prefix"`` the blocks before the first modulated one have no static offsets: z is read from their
    tokens on the way, and must not move with training.

    Cost: beyond the backbone, one pass of the style extractor (none for "prefix"), 4/3 of the FLOPs of each modulated
    qkv and 5/4 of those of each MLP linear. Building factors every injected weight once; the factors are kept on disk.

    Raises:
        TypeError, ValueError: naming the field of `config` that cannot be used.

    Source: Hystar, section 3.

    >>> model = Hystar(HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=(2,), static=False))
    >>> model.encode_image(torch.randn(2, 3, 64, 64)).norm(dim=-1).allclose(torch.ones(2))
    True
    """

    def __init__(self, config: HystarConfig) -> None:
        super().__init__()
        if not isinstance(config, HystarConfig):
            raise TypeError(f"config must be a HystarConfig, got {type(config).__name__}")
        self.config = config
        self.backbone: Backbone = create_backbone(config)
        blocks = resolve_blocks(config.blocks, self.backbone.depth, config.backbone)
        self.backbone_parameter_count = sum(parameter.numel() for parameter in self.backbone.parameters())
        self.extractor: StyleExtractor | None = create_style(config, self.backbone) if blocks else None
        read_by_style = {} if self.extractor is None else self.extractor.state_dict()
        hashed: Hashed = {}
        self._fingerprints = {
            "backbone": fingerprint(self.backbone.state_dict().items(), hashed),
            "style": fingerprint(read_by_style.items(), hashed) if read_by_style else None,
        }
        self.hypernetworks = nn.ModuleDict()
        self._static_names: tuple[str, ...] = ()
        self._merged = False
        self._inject(blocks)

    def _inject(self, blocks: tuple[int, ...]) -> None:
        progress = tqdm(desc="Factoring weights", unit="block", total=self.backbone.depth, delay=2.0, leave=False)
        names: list[str] = []
        design = self.config.design
        untouched = self.extractor.blocks if isinstance(self.extractor, PrefixStyle) else 0
        with progress:
            for number in range(1, self.backbone.depth + 1):
                if number in blocks and self.extractor is not None:
                    if design != "reversed":
                        rank = self.backbone.inject_dynamic(number, self.config.rank)
                        self.hypernetworks[str(number)] = self._hypernetwork(self.extractor.dim, rank)
                    if design != "original":
                        rank = self.backbone.inject_dynamic_mlp(number, self.config.rank)
                        self.hypernetworks[_MLP + str(number)] = self._hypernetwork(self.extractor.dim, rank)
                static = self.config.static and number > untouched
                if static and design == "original":
                    names += self.backbone.inject_static(number, self.config.rank)
                if static and design == "reversed":
                    names += self.backbone.inject_static_attention(number, self.config.rank)
                progress.update()
        self._static_names = tuple(names)

    def _hypernetwork(self, style_dim: int, rank: int) -> Hypernetwork:
        config = self.config
        width, depth = config.hypernetwork_width, config.hypernetwork_depth
        return Hypernetwork(style_dim, rank, width, depth, init=config.hypernetwork_init)

    @property
    def preprocess(self) -> Any:
        """PIL image -> [3, H, W], as the backbone wants it."""
        return self.backbone.preprocess

    @property
    def tokenizer(self) -> Any:
        """A list of texts -> token ids [B, L]."""
        return self.backbone.tokenizer

    def style(self, images: Tensor) -> Tensor:
        """The style vectors of preprocessed images.

        Args:
            images: [B, 3, H, W], as :attr:`preprocess` makes them.

        Returns:
            z [B, style_dim], rows of unit length, never requiring a gradient.

        Raises:
            ValueError: when the model modulates no block, so that no style is used.
        """
        if self.extractor is None:
            raise ValueError("blocks=() modulates no block, so this model has no style extractor")
        return self._read_style(self.extractor, images)[0]

    def _read_style(self, extractor: StyleExtractor, images: Tensor) -> tuple[Tensor, tuple[int, Tensor] | None]:
        """The style of images and, where it was read on the way, how far the backbone has come with them."""
        self.backbone.check_images(images)
        if not isinstance(extractor, PrefixStyle) or images.shape[0] == 0:
            return extractor(images), None
        with torch.no_grad():
            tokens = self.backbone.prefix(images, extractor.blocks)
        return extractor(tokens), (extractor.blocks, tokens)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Embed images with the encoder modulated by their style.

        Args:
            images: [B, 3, H, W], as :attr:`preprocess` makes them.
            style: z [B, style_dim], one a sample, or [style_dim], shared by all; None takes :meth:`style` of `images`.

        Returns:
            [B, D], rows of unit length. A non-finite image makes only its own row non-finite.

        Gradients: for the hypernetworks, the static offsets, and `style` where it requires one.
        """
        self.backbone.check_images(images)
        if self.extractor is None:
            if style is not None:
                raise ValueError("style must be None: blocks=() modulates no block")
            return F.normalize(self.backbone.encode_image(images), dim=-1)
        begun = None
        if style is None:
            style, begun = self._read_style(self.extractor, images)
        else:
            _check_style(style, images.shape[0], self.extractor.dim)
        style = style.to(next(self.hypernetworks.parameters()).dtype)
        attention: dict[int, Tensor] = {}
        mlp: dict[int, Tensor] = {}
        for name, network in self.hypernetworks.items():
            (mlp if name.startswith(_MLP) else attention)[int(name.removeprefix(_MLP))] = network(style)
        return F.normalize(self.backbone.encode_image(images, attention, mlp, begun=begun), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens [B, L], as :attr:`tokenizer` makes them -> [B, D], rows of unit length, by the untouched tower."""
        return F.normalize(self.backbone.encode_text(tokens), dim=-1)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each visual block in the backward pass instead of keeping what happened inside it."""
        self.backbone.gradient_checkpointing = bool(enabled)

    def static_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The static offsets, by name; none after :meth:`merge_static_`."""
        for name in self._static_names:
            layer = self.backbone.get_submodule(name)
            if isinstance(layer, FastSVDLinear):
                yield f"static.{name}", layer.delta_s_static

    def dynamic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The hypernetworks' weights, by name."""
        yield from self.hypernetworks.named_parameters(prefix="hypernetworks")

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter that is trained, static offsets first: hand it to an optimizer or a gradient clip."""
        named = (*self.static_parameters(), *self.dynamic_parameters())
        return [parameter for _, parameter in named if parameter.requires_grad]

    def parameter_groups(self, static_lr: float = 1e-3, dynamic_lr: float = 1e-5) -> list[dict[str, Any]]:
        """Optimizer groups "static" and "dynamic" with the paper's two learning rates; empty groups are left out."""
        static = [parameter for _, parameter in self.static_parameters() if parameter.requires_grad]
        dynamic = [parameter for _, parameter in self.dynamic_parameters() if parameter.requires_grad]
        groups = [
            {"name": "static", "params": static, "lr": static_lr},
            {"name": "dynamic", "params": dynamic, "lr": dynamic_lr},
        ]
        return [group for group in groups if group["params"]]

    def parameter_counts(self) -> dict[str, int]:
        """How many numbers are in the backbone as published, the static offsets, and the hypernetworks."""
        return {
            "backbone": self.backbone_parameter_count,
            "static": sum(parameter.numel() for _, parameter in self.static_parameters()),
            "dynamic": sum(parameter.numel() for _, parameter in self.dynamic_parameters()),
        }

    def print_trainable_parameters(self) -> None:
        """Print how much is trained, against the backbone as published (Table 5)."""
        sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in self.parameter_groups()}
        trained, backbone = sum(sizes.values()), self.backbone_parameter_count
        parts = " + ".join(f"{size:,} {name}" for name, size in sizes.items()) or "nothing"
        print(
            f"trainable: {trained:,} ({parts}), {100 * trained / backbone:.2f} % on top of the backbone's {backbone:,}"
        )

    @torch.no_grad()
    def merge_static_(self) -> Self:
        """Fold the static offsets into plain linears and keep the hypernetworks: the serving form. Saves no more."""
        for name in self._static_names:
            layer = self.backbone.get_submodule(name)
            if isinstance(layer, FastSVDLinear):
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), child, layer.merge().requires_grad_(False))
                self._merged = True
        return self

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the adapter, not the backbone: ``config.json`` and ``adapter.safetensors``, each whole or not at all.

        Raises:
            ValueError: after :meth:`merge_static_`, whose offsets can no longer be told from the weights.
        """
        if self._merged:
            raise ValueError("the static offsets are merged into the weights: save before merge_static_")
        description = {"config": self.config.to_dict(), "fingerprints": self._fingerprints}
        write_adapter(directory, description, self._adapter())

    @classmethod
    def from_pretrained(cls, directory: str | Path, **changes: Any) -> Self:
        """Rebuild a saved model: the backbone and the style extractor its configuration names, and the adapter.

        Args:
            directory: what :meth:`save_pretrained` wrote.
            changes: fields of the configuration to replace, such as ``pretrained`` where the weights have moved.

        Raises:
            ValueError: when a file is missing, corrupt or of another format, when the adapter does not fit the
                configuration, or when the backbone or extractor holds other weights than the adapter was trained on.
        """
        description, tensors = read_adapter(directory)
        config = HystarConfig.from_dict({**description["config"], **changes})
        model = cls(config)
        for part, trained_on in description["fingerprints"].items():
            if not are_same_weights(trained_on, model._fingerprints.get(part)):
                field = "pretrained" if part == "backbone" else "style_pretrained"
                raise ValueError(
                    f"the adapter in {directory} was trained on another {part}: {field}={getattr(config, field)!r} "
                    "gives different weights"
                )
        needed = model._adapter()
        check_tensors(tensors, needed)
        with torch.no_grad():
            for name, parameter in needed.items():
                parameter.copy_(tensors[name])
        return model

    @classmethod
    def from_authors_checkpoint(cls, path: str | Path, config: HystarConfig | None = None) -> Self:
        """Read a checkpoint of the published Hystar code (its ``best.pt`` or ``last.pt``); save it as our adapter then.

        Args:
            path: the file.
            config: names the backbone and style it was trained with, an open_clip one; None is the published setting.
                ``blocks``, ``rank`` and ``static`` are taken from the file.

        Returns:
            The model with the learned gates folded into its static offsets.

        Raises:
            ValueError: when the file is of another layout, lacks a tensor, or was trained on other weights.
        """
        stored = AuthorsCheckpoint.read(path)
        config = HystarConfig(weights="authors") if config is None else config
        if not config.backbone.startswith("open_clip:"):
            raise ValueError(f"config.backbone must be one of open_clip for these checkpoints, got {config.backbone!r}")
        if config.style == "prefix":
            raise ValueError('config.style must be that of the checkpoint, "prefix" leaves out static offsets it has')
        model = cls(replace(config, blocks=stored.blocks, rank=stored.rank, **_AUTHORS_DESIGN))
        for name in model._static_names:
            stored.fill_static(name, model.backbone.get_submodule(name))
        for number, network in model.hypernetworks.items():
            name = f"clip.visual.transformer.resblocks.{int(number) - 1}.attn"
            stored.fill_dynamic(name, model.backbone.get_submodule(f"{name}.in_proj"), network)
        return model

    def _adapter(self) -> dict[str, Tensor]:
        return dict((*self.static_parameters(), *self.dynamic_parameters()))


def _check_style(style: Tensor, batch: int, dim: int) -> None:
    if not isinstance(style, Tensor) or not style.is_floating_point():
        kind = style.dtype if isinstance(style, Tensor) else type(style).__name__
        raise TypeError(f"style must be a floating-point tensor, got {kind}")
    if tuple(style.shape) not in ((dim,), (batch, dim)):
        raise ValueError(f"style must have shape [{batch}, {dim}] or [{dim}], got {list(style.shape)}")
