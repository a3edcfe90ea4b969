"""Hystar: a frozen vision-language model whose image encoder is modulated by the style of each image."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from hystar_fast.models.adapter_format import (
    Hashed,
    check_tensors,
    fingerprint,
    read_adapter,
    write_adapter,
)
from hystar_fast.models.authors_checkpoint import AuthorsCheckpoint
from hystar_fast.models.backbone_identity import backbone_fingerprints, check_fingerprints
from hystar_fast.models.backbones import Backbone, create_backbone, move_weights
from hystar_fast.models.config import HystarConfig, resolve_blocks
from hystar_fast.models.style import PrefixStyle, StyleExtractor, create_style
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.nn.in_threads import map_in_threads

_MLP = "mlp"  # a hypernetwork is named after its block's number, with this before it where it modulates the MLP
_AUTHORS_DESIGN: dict[str, Any] = {
    "static": True,
    "design": "original",
    "hypernetwork_width": None,
    "hypernetwork_depth": 2,
}


class Hystar(nn.Module):
    """Style-adaptive encoder: one model for pictures, sketches, low-resolution pictures and text.

    ``W_b = U diag(s + Δs_stat + Δs_dyn(z_b)) Vᵀ`` (Eq. 1-2). The packed qkv weight of ``config.blocks`` takes
    Δs_dyn = Hypernetwork(z) for the style z of each image. Every MLP linear of the visual tower takes a learned
    Δs_stat. Everything else is frozen. W_b is never built, and z is passed as an argument down to the weight.

    With ``style="prefix"`` the blocks before the first modulated one have no static offsets: z is computed from their
    tokens, and must not change with training.

    Args:
        config: the backbone, the style extractor and the modulated layers, see :class:`HystarConfig`.

    Gradients: for the hypernetworks and the static offsets.

    Cost: in addition to the backbone, one pass of the style extractor (none for "prefix"), 4/3 of the FLOPs of each
    modulated qkv and 5/4 of those of each MLP linear. Construction factors every injected weight, once, as the factors
    are cached on disk, and hashes every frozen weight (:func:`hystar_fast.models.adapter_format.fingerprint`).

    Raises:
        TypeError, ValueError: a field of `config` cannot be used; the message names it.

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
        self.fingerprints = {
            **backbone_fingerprints(self.backbone, hashed),
            "style": fingerprint(read_by_style.items(), hashed) if read_by_style else None,
        }
        self.hypernetworks = nn.ModuleDict()
        self._static_names: tuple[str, ...] = ()
        self._is_merged = False
        self._check_layers(blocks)
        self._inject(blocks)

    def _check_layers(self, blocks: tuple[int, ...]) -> None:
        """Inject into a copy without values, which refuses what cannot be replaced before any weight is factored."""
        backbone: Any = self.backbone
        try:
            self.backbone = backbone.without_values()
            with torch.device("meta"):
                self._inject(blocks)
        finally:
            self.backbone = backbone
            self.hypernetworks = nn.ModuleDict()

    def _inject(self, blocks: tuple[int, ...]) -> None:
        numbers = range(1, self.backbone.depth + 1)
        progress = tqdm(desc="Factoring weights", unit="block", total=len(numbers), delay=2.0, leave=False)

        def inject_block(number: int) -> tuple[int | None, int | None, list[str]]:
            ranks = self._inject_block(number, is_dynamic=number in blocks)
            progress.update()
            return ranks

        with progress:
            injected = map_in_threads(inject_block, numbers)
        names: list[str] = []
        for number, (rank, mlp_rank, static_names) in zip(numbers, injected, strict=True):
            for name, size in ((str(number), rank), (_MLP + str(number), mlp_rank)):
                if size is not None and self.extractor is not None:
                    self.hypernetworks[name] = self._hypernetwork(self.extractor.dim, size)
            names += static_names
        self._static_names = tuple(names)

    def _inject_block(self, number: int, *, is_dynamic: bool) -> tuple[int | None, int | None, list[str]]:
        """Make one block of the backbone adaptable.

        Returns:
            The number of dynamic offsets of its attention and of its MLP, None for none, and the names of the layers
            with static offsets.
        """
        rank = mlp_rank = None
        config, static_names = self.config, list[str]()
        if is_dynamic and config.design != "reversed":
            rank = self.backbone.inject_dynamic(number, config.rank)
        if is_dynamic and config.design != "original":
            mlp_rank = self.backbone.inject_dynamic_mlp(number, config.rank)
        without_offsets = self.extractor.blocks if isinstance(self.extractor, PrefixStyle) else 0
        is_static = config.static and number > without_offsets
        if is_static and config.design == "original":
            static_names = self.backbone.inject_static(number, config.rank)
        if is_static and config.design == "reversed":
            static_names = self.backbone.inject_static_attention(number, config.rank)
        return rank, mlp_rank, static_names

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
        """Callable of the backbone: a list of texts -> token ids [B, L]."""
        return self.backbone.tokenizer

    def style(self, images: Tensor) -> Tensor:
        """Compute the style vectors of preprocessed images.

        Args:
            images: [B, 3, H, W], as :attr:`preprocess` makes them.

        Returns:
            z [B, style_dim], rows of unit length, without a gradient.

        Raises:
            ValueError: the model modulates no block, and so has no style.
        """
        if self.extractor is None:
            raise ValueError("config.blocks must name a block for a style, got blocks=()")
        return self._extract_style(self.extractor, images)[0]

    def _extract_style(self, extractor: StyleExtractor, images: Tensor) -> tuple[Tensor, tuple[int, Tensor] | None]:
        """Return the style and, for "prefix", the number of blocks it was computed after and their tokens."""
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
            style: z [B, style_dim], one for each image, or [style_dim], shared by all; None means
                :meth:`style` of `images`.

        Returns:
            [B, D], rows of unit length. NaN or inf in an image reaches only its own row.

        Gradients: for the hypernetworks, the static offsets, and `style` where it requires a gradient.
        """
        self.backbone.check_images(images)
        if self.extractor is None:
            if style is not None:
                raise ValueError(f"style must be None where config.blocks is (), got {type(style).__name__}")
            return F.normalize(self.backbone.encode_image(images), dim=-1)
        resume_from = None
        if style is None:
            style, resume_from = self._extract_style(self.extractor, images)
        else:
            _check_style(style, images.shape[0], self.extractor.dim)
        style = style.to(next(self.hypernetworks.parameters()).dtype)
        attention: dict[int, Tensor] = {}
        mlp: dict[int, Tensor] = {}
        for name, network in self.hypernetworks.items():
            (mlp if name.startswith(_MLP) else attention)[int(name.removeprefix(_MLP))] = network(style)
        return F.normalize(self.backbone.encode_image(images, attention, mlp, resume_from=resume_from), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed texts with the frozen text tower.

        Args:
            tokens: [B, L], as :attr:`tokenizer` makes them.

        Returns:
            [B, D], rows of unit length.
        """
        return F.normalize(self.backbone.encode_text(tokens), dim=-1)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each visual block in the backward, so that its activations are not stored."""
        self.backbone.gradient_checkpointing = bool(enabled)

    def static_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the static offsets with their names; none after :meth:`merge_static_`."""
        for name in self._static_names:
            layer = self.backbone.get_submodule(name)
            if isinstance(layer, FastSVDLinear):
                yield f"static.{name}", layer.delta_s_static

    def dynamic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the hypernetworks with their names."""
        yield from self.hypernetworks.named_parameters(prefix="hypernetworks")

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is trained, static offsets first, for an optimizer or for gradient clipping."""
        named = (*self.static_parameters(), *self.dynamic_parameters())
        return [parameter for _, parameter in named if parameter.requires_grad]

    def parameter_groups(self, static_lr: float = 1e-3, dynamic_lr: float = 1e-5) -> list[dict[str, Any]]:
        """Return the optimizer groups "static" and "dynamic", without empty ones, with the paper's learning rates."""
        static = [parameter for _, parameter in self.static_parameters() if parameter.requires_grad]
        dynamic = [parameter for _, parameter in self.dynamic_parameters() if parameter.requires_grad]
        groups = [
            {"name": "static", "params": static, "lr": static_lr},
            {"name": "dynamic", "params": dynamic, "lr": dynamic_lr},
        ]
        return [group for group in groups if group["params"]]

    def parameter_counts(self) -> dict[str, int]:
        """Count the parameters of the published backbone, of the static offsets and of the hypernetworks."""
        return {
            "backbone": self.backbone_parameter_count,
            "static": sum(parameter.numel() for _, parameter in self.static_parameters()),
            "dynamic": sum(parameter.numel() for _, parameter in self.dynamic_parameters()),
        }

    def print_trainable_parameters(self) -> None:
        """Print the number of trained parameters, and their share of the published backbone's (Table 5)."""
        sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in self.parameter_groups()}
        trained, backbone = sum(sizes.values()), self.backbone_parameter_count
        parts = " + ".join(f"{size:,} {name}" for name, size in sizes.items()) or "nothing"
        print(
            f"trainable: {trained:,} ({parts}), {100 * trained / backbone:.2f} % on top of the backbone's {backbone:,}"
        )

    @torch.no_grad()
    def merge_static_(self) -> Self:
        """Fold the static offsets into nn.Linear layers and keep the hypernetworks, for serving.

        The model cannot be saved afterwards.
        """
        for name in self._static_names:
            layer = self.backbone.get_submodule(name)
            if isinstance(layer, FastSVDLinear):
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), child, layer.merge().requires_grad_(False))
                self._is_merged = True
        return self

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the adapter without the backbone: ``config.json`` and ``adapter.safetensors``.

        Each file is written beside its place and renamed, so that an old file is replaced as a whole.

        Raises:
            ValueError: the model was merged by :meth:`merge_static_`, so its offsets are no longer known.
        """
        if self._is_merged:
            raise ValueError("the model must be saved before merge_static_, got one whose static offsets are merged")
        description = {"config": self.config.to_dict(), "fingerprints": self.fingerprints}
        write_adapter(directory, description, self._adapter_tensors())

    @classmethod
    def from_pretrained(cls, directory: str | Path, **changes: Any) -> Self:
        """Build the model of a saved adapter: backbone and style extractor by its configuration, then its tensors.

        Args:
            directory: the folder that :meth:`save_pretrained` wrote.
            changes: fields of the configuration to replace, such as ``pretrained`` where the weights have moved; a file
                of them runs with the settings of the tag that the adapter was trained on.

        Raises:
            ValueError: a file is missing, corrupt or of another format, the adapter does not fit the configuration, or
                the backbone or the style extractor has other weights, another activation or other preprocessing than
                those that the adapter was trained on.
        """
        description, tensors = read_adapter(directory)
        config = move_weights(HystarConfig.from_dict(description["config"]), **changes)
        with weightless(config) as sizes:  # before anything is read or factored
            check_tensors(tensors, cls(sizes)._adapter_tensors(), f"backbone {config.backbone!r}")
        model = cls(config)
        check_fingerprints(description["fingerprints"], model.fingerprints, config, directory)
        needed = model._adapter_tensors()
        check_tensors(tensors, needed)
        with torch.no_grad():
            for name, parameter in needed.items():
                parameter.copy_(tensors[name])
        return model

    @classmethod
    def from_authors_checkpoint(cls, path: str | Path, config: HystarConfig | None = None) -> Self:
        """Build the model of a checkpoint that the published Hystar code wrote, its ``best.pt`` or ``last.pt``.

        Args:
            path: the file.
            config: the backbone, one of open_clip, and the style that it was trained with; None means the published
                ones. ``blocks``, ``rank`` and ``static`` are taken from the file.

        Returns:
            The model, with the learned gates folded into its static offsets.

        Raises:
            ValueError: the file has another layout, lacks a tensor, or was trained on other weights.
        """
        stored = AuthorsCheckpoint.read(path)
        config = HystarConfig(weights="authors") if config is None else config
        if not config.backbone.startswith("open_clip:"):
            raise ValueError(f"config.backbone must be one of open_clip for these checkpoints, got {config.backbone!r}")
        if config.style == "prefix":
            raise ValueError(
                'config.style must be the one of the checkpoint, got "prefix", under which the first blocks have no '
                "static offsets"
            )
        model = cls(replace(config, blocks=stored.blocks, rank=stored.rank, **_AUTHORS_DESIGN))
        for name in model._static_names:
            stored.fill_static(name, model.backbone.get_submodule(name))
        for number, network in model.hypernetworks.items():
            name = f"clip.visual.transformer.resblocks.{int(number) - 1}.attn"
            stored.fill_dynamic(name, model.backbone.get_submodule(f"{name}.in_proj"), network)
        return model

    def _adapter_tensors(self) -> dict[str, Tensor]:
        return dict((*self.static_parameters(), *self.dynamic_parameters()))


@contextlib.contextmanager
def weightless(config: HystarConfig) -> Iterator[HystarConfig]:
    """Build on the meta device, and yield `config` without weights: no weight is read, allocated or factored."""
    extractor = config.style_pretrained if config.style == "dinov2" else None
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that there are no weights
    try:
        with torch.device("meta"):
            yield replace(config, pretrained=None, style_pretrained=extractor)
    finally:
        logging.disable(disabled)


def _check_style(style: Tensor, batch: int, dim: int) -> None:
    if not isinstance(style, Tensor) or not style.is_floating_point():
        kind = style.dtype if isinstance(style, Tensor) else type(style).__name__
        raise TypeError(f"style must be a floating-point tensor, got {kind}")
    if tuple(style.shape) not in ((dim,), (batch, dim)):
        raise ValueError(f"style must have shape [{batch}, {dim}] or [{dim}], got {list(style.shape)}")
