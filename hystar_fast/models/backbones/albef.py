"""ALBEF: a ViT-B/16 and the first half of a BERT, from files in the layout of the published checkpoints."""

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
from hystar_fast.models.torch_files import read_torch

_NORMALISE = Normalise((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HEAD_WIDTH = 64  # in both encoders; no shape in a checkpoint shows it
_CAPTION_LENGTH = 30  # tokens, as in the published retrieval evaluation
_PADDING = 0  # the id of BERT's padding
_POSITIONS = "visual_encoder.pos_embed"
TOKENIZER_HINT = "save transformers' AutoTokenizer.from_pretrained('bert-base-uncased') into that folder"


@dataclass(frozen=True)
class AlbefSizes:
    """Sizes of ALBEF: by default the published ones, and by :meth:`of` those of a checkpoint."""

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
        """Return the sizes of a checkpoint; None for `image_size` means that of its position embeddings."""
        patch_size = tensors["visual_encoder.patch_embed.proj.weight"].shape[-1]
        embedding = "text_encoder.embeddings."
        fusion_layers = {int(name.split(".")[3]) for name in tensors if ".crossattention." in name}
        layers = _count_parts(tensors, "text_encoder.encoder.layer.")
        return cls(
            image_size=image_size or math.isqrt(tensors[_POSITIONS].shape[1] - 1) * patch_size,
            patch_size=patch_size,
            vision_width=tensors[_POSITIONS].shape[2],
            vision_depth=_count_parts(tensors, "visual_encoder.blocks."),
            vision_hidden=tensors["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            embed_dim=tensors["vision_proj.weight"].shape[0],
            text_width=tensors["text_proj.weight"].shape[1],
            text_depth=min(fusion_layers, default=layers),  # the layers from here on also attend to an image
            text_hidden=tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            vocabulary=tensors[f"{embedding}word_embeddings.weight"].shape[0],
            text_positions=tensors[f"{embedding}position_embeddings.weight"].shape[0],
        )


class Albef(nn.Module):
    """Image encoder, text encoder and projections of ALBEF, with the published names of their tensors."""

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
    """Visual tower of ALBEF: its embedding is the projected class token after the last norm."""

    family = "albef"

    def __init__(self) -> None:
        super().__init__("visual_encoder", "vision_proj")

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        return visual.vision_proj(visual.visual_encoder.norm(x)[:, 0])

    def unused(self, visual: Any) -> Sequence[nn.Module]:
        return [visual.text_encoder, visual.text_proj]


class AlbefBackbone(TowerBackbone):
    """Frozen image and text encoder of ALBEF, without the fusion layers and the matching head.

    Args:
        albef: its parameters are frozen here.
        folder: the folder of a tokenizer of transformers, which may be missing.
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
        is_word = tokens.ne(_PADDING).long()
        states = self.albef.text_encoder(input_ids=tokens, attention_mask=is_word).last_hidden_state
        return self.albef.text_proj(states[:, 0])


def load_albef(path: str, pretrained: str | None, image_size: int | None = None) -> AlbefBackbone:
    """Load ALBEF on the default device.

    Args:
        path: a published checkpoint, of pretraining or tuned for retrieval.
        pretrained: any value but None means the weights of `path`. None means random weights, the same every time, in
            the sizes of `path`, or in the published sizes where there is no such file.
        image_size: None means that of the position embeddings of the checkpoint, which are resized for any other.
    """
    try:
        tensors = None if pretrained is None and not Path(path).is_file() else read_albef(path)
        sizes = AlbefSizes(image_size=image_size or 256) if tensors is None else AlbefSizes.of(tensors, image_size)
        if sizes.image_size % sizes.patch_size:
            raise ValueError(f"image_size must be a multiple of {sizes.patch_size}, got {sizes.image_size}")
        with repeatable_weights():
            albef = Albef(sizes)
        if tensors is not None and pretrained is not None:
            tensors[_POSITIONS] = resize_positions(tensors[_POSITIONS], sizes.image_size // sizes.patch_size)
            needed = albef.state_dict()
            missing = sorted(set(needed) - set(tensors))
            if missing:
                raise ValueError(f"it lacks {', '.join(missing[:3])}")
            albef.load_state_dict({name: tensors[name] for name in needed})
        return AlbefBackbone(albef, Path(path).parent)
    except Exception as error:  # damaged or missing files can raise anything
        raise ValueError(
            f"backbone 'albef:{path}' with pretrained={pretrained!r} could not be loaded: {error}"
        ) from error


def read_albef(path: str) -> dict[str, Tensor]:
    """Read the tensors of the two encoders from a checkpoint, in float32, with ``text_encoder.bert.`` shortened."""
    stored = read_torch(path)
    tensors = stored.get("model", stored) if isinstance(stored, dict) else None
    if not isinstance(tensors, dict) or _POSITIONS not in tensors:
        raise ValueError(f"it must be a checkpoint of ALBEF, got a file without {_POSITIONS}")
    kept = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        if part in ("visual_encoder", "vision_proj", "text_encoder", "text_proj"):
            short = name.replace("text_encoder.bert.", "text_encoder.", 1)
            kept[short] = tensor.float() if tensor.is_floating_point() else tensor
    return kept


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize position embeddings [1, 1 + n², d] to `grid` x `grid` patches, bicubically and without antialiasing."""
    old = math.isqrt(positions.shape[1] - 1)
    if old == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def _count_parts(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the different numbers that follow `prefix` in the names of tensors."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
