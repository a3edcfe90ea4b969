"""ALBEF: a ViT-B/16 and the first half of a BERT, read from the layout of the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.data.images import Normalise, ResizeTo
from hystar_fast.models.backbones.processors import load_tokenizer
from hystar_fast.models.backbones.timm import TimmTower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.random_weights import repeatable_weights

_NORMALISE = Normalise((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HEAD_WIDTH = 64  # of both encoders: a checkpoint does not say it
_CAPTION_LENGTH = 30  # tokens: what the published retrieval evaluation pads and truncates to
_PADDING = 0  # BERT's id
_POSITIONS = "visual_encoder.pos_embed"
TOKENIZER_HINT = "save transformers' AutoTokenizer.from_pretrained('bert-base-uncased') into that folder"


@dataclass(frozen=True)
class AlbefSizes:
    """The published sizes; what a checkpoint's shapes say otherwise is read by :meth:`of`."""

    image_size: int = 256
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_hidden: int = 3072
    embed_dim: int = 256
    text_width: int = 768
    text_depth: int = 6
    text_hidden: int = 3072
    vocabulary: int = 30522
    text_positions: int = 512

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], image_size: int | None) -> AlbefSizes:
        """The sizes of a checkpoint; `image_size` None is the resolution its positions were trained at."""
        patch_size = tensors["visual_encoder.patch_embed.proj.weight"].shape[-1]
        embedding = "text_encoder.embeddings."
        fused = {int(name.split(".")[3]) for name in tensors if ".crossattention." in name}
        layers = _numbered(tensors, "text_encoder.encoder.layer.")
        return cls(
            image_size=image_size or math.isqrt(tensors[_POSITIONS].shape[1] - 1) * patch_size,
            patch_size=patch_size,
            vision_width=tensors[_POSITIONS].shape[2],
            vision_depth=_numbered(tensors, "visual_encoder.blocks."),
            vision_hidden=tensors["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            embed_dim=tensors["vision_proj.weight"].shape[0],
            text_width=tensors["text_proj.weight"].shape[1],
            text_depth=min(fused, default=layers),  # what lies above attends to an image too
            text_hidden=tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            vocabulary=tensors[f"{embedding}word_embeddings.weight"].shape[0],
            text_positions=tensors[f"{embedding}position_embeddings.weight"].shape[0],
        )


class Albef(nn.Module):
    """ALBEF's two unimodal encoders and their projections, with the published names of their tensors."""

    def __init__(self, sizes: AlbefSizes) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer
        from transformers import BertConfig, BertModel

        self.sizes = sizes
        self.visual_encoder = VisionTransformer(
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.vision_width,
            depth=sizes.vision_depth,
            num_heads=sizes.vision_width // _HEAD_WIDTH,
            mlp_ratio=sizes.vision_hidden / sizes.vision_width,
            num_classes=0,
            global_pool="",
        )
        self.text_encoder = BertModel(
            BertConfig(
                vocab_size=sizes.vocabulary,
                hidden_size=sizes.text_width,
                num_hidden_layers=sizes.text_depth,
                num_attention_heads=sizes.text_width // _HEAD_WIDTH,
                intermediate_size=sizes.text_hidden,
                max_position_embeddings=sizes.text_positions,
            ),
            add_pooling_layer=False,
        )
        self.vision_proj = nn.Linear(sizes.vision_width, sizes.embed_dim)
        self.text_proj = nn.Linear(sizes.text_width, sizes.embed_dim)


class AlbefTower(TimmTower):
    """The image embedding is the projected class token after the last norm."""

    family = "albef"

    def __init__(self) -> None:
        super().__init__("visual_encoder", "vision_proj")

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        return visual.vision_proj(visual.visual_encoder.norm(x)[:, 0])

    def unused(self, visual: Any) -> Sequence[nn.Module]:
        return [visual.text_encoder, visual.text_proj]


class AlbefBackbone(TowerBackbone):
    """ALBEF's unimodal encoders, frozen; the fusion layers and the matching head are not part of it.

    Args:
        albef: its parameters are frozen here.
        folder: where a tokenizer of transformers is looked for.
    """

    def __init__(self, albef: Albef, folder: Path) -> None:
        super().__init__(AlbefTower(), "albef")
        self.albef = albef.requires_grad_(False).eval()
        sizes = albef.sizes
        self.depth = sizes.vision_depth
        self.width, self.embed_dim = self.tower.widths(albef)
        self.image_size = (sizes.image_size, sizes.image_size)
        self.resize, self.normalise = ResizeTo(self.image_size, "squash"), _NORMALISE  # as the published evaluation
        self.tokenizer = load_tokenizer(str(folder), min(_CAPTION_LENGTH, sizes.text_positions), hint=TOKENIZER_HINT)

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens)
        written = tokens.ne(_PADDING).long()
        states = self.albef.text_encoder(input_ids=tokens, attention_mask=written).last_hidden_state
        return self.albef.text_proj(states[:, 0])


def load_albef(path: str, pretrained: str | None, image_size: int | None = None) -> AlbefBackbone:
    """ALBEF on the default device.

    Args:
        path: a published checkpoint, of pretraining or tuned for retrieval.
        pretrained: anything but None means the weights of `path`; None gives random ones, the same every time, in
            the sizes of `path`, or the published sizes where there is no such file.
        image_size: None for that of the checkpoint's position embeddings, which are resized for any other.
    """
    try:
        tensors = None if pretrained is None and not Path(path).is_file() else read_albef(path)
        sizes = AlbefSizes(image_size=image_size or 256) if tensors is None else AlbefSizes.of(tensors, image_size)
        if sizes.image_size % sizes.patch_size:
            raise ValueError(f"image_size must be a multiple of {sizes.patch_size}, got {sizes.image_size}")
        with repeatable_weights():
            albef = Albef(sizes)
        if tensors is not None and pretrained is not None:
            tensors[_POSITIONS] = resized_positions(tensors[_POSITIONS], sizes.image_size // sizes.patch_size)
            needed = albef.state_dict()
            lacking = sorted(set(needed) - set(tensors))
            if lacking:
                raise ValueError(f"it lacks {', '.join(lacking[:3])}")
            albef.load_state_dict({name: tensors[name] for name in needed})
    except Exception as error:  # readers of damaged or missing files raise anything
        raise ValueError(
            f"backbone 'albef:{path}' with pretrained={pretrained!r} could not be loaded: {error}"
        ) from error
    return AlbefBackbone(albef, Path(path).parent)


def read_albef(path: str) -> dict[str, Tensor]:
    """The tensors of the unimodal encoders in a checkpoint, with ``text_encoder.bert.`` shortened, in float32."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    tensors = stored.get("model", stored) if isinstance(stored, dict) else None
    if not isinstance(tensors, dict) or _POSITIONS not in tensors:
        raise ValueError(f"it holds no {_POSITIONS}, so it is no checkpoint of ALBEF")
    kept = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        if part in ("visual_encoder", "vision_proj", "text_encoder", "text_proj"):
            short = name.replace("text_encoder.bert.", "text_encoder.", 1)
            kept[short] = tensor.float() if tensor.is_floating_point() else tensor
    return kept


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings [1, 1 + n², d] for a grid of `grid` x `grid` patches: bicubic, without antialiasing."""
    old = math.isqrt(positions.shape[1] - 1)
    if old == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are below `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
