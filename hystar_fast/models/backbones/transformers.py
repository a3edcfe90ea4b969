"""CLIP, SigLIP and BLIP of transformers, frozen, run by the loop over blocks with fused attention."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hystar_fast.models.backbones.processors import load_image_processing, load_tokenizer
from hystar_fast.models.backbones.tower import Affine, TowerBackbone, VisionTower
from hystar_fast.models.random_weights import repeatable_weights
from hystar_fast.nn.attention import SVDAttention, attend
from hystar_fast.nn.views import own_tensor

_SPLIT = ("q_proj", "k_proj", "v_proj")
_BLIP_CAPTION_LENGTH = 35  # tokens, as BLIP was tuned and evaluated for retrieval


class TransformersTower(VisionTower):
    """Vision model of transformers, with pre-norm blocks in ``vision_model.encoder.layers``.

    Attention is computed here from the projections, packed (``qkv``) or split, because BLIP's own stores every T x T
    matrix.
    """

    blocks_at = "vision_model.encoder.layers"
    attention_at = "self_attn"
    mlp_parts = ("fc1", "activation_fn", "fc2")
    heads: Sequence[str] = ()
    lower_case = False  # True where the model was trained on text in lower case, whatever its tokenizer does

    def patch_weight(self, visual: Any) -> Tensor:
        return visual.vision_model.embeddings.patch_embedding.weight

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        return visual.vision_model.embeddings(images)

    def run_block(self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None) -> Tensor:
        x = x + _attend(block.self_attn, block.layer_norm1(x), delta_s)
        return x + self.run_mlp(block.mlp, block.layer_norm2(x), mlp_delta_s)

    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        return SVDAttention.from_linears(_projections(attention), _output(attention), attention.num_heads, rank)

    def projections(self, attention: Any) -> list[Affine]:
        return [Affine(layer) for layer in _projections(attention)]

    def around_blocks(self, visual: Any) -> list[nn.Module]:
        return [visual.vision_model.embeddings.patch_embedding, visual.vision_model.post_layernorm]

    def unused(self, visual: Any) -> Sequence[nn.Module]:
        return [child for name, child in visual.named_children() if name not in ("vision_model", *self.heads)]

    @abstractmethod
    def encode_text(self, model: Any, tokens: Tensor) -> Tensor:
        """Embed tokens [B, L] -> [B, D], not normalised."""

    def check(self, visual: Any) -> None:
        missing = [head for head in self.heads if not hasattr(visual, head)]
        if missing:
            raise ValueError(
                f"backbone must be a model with two towers, got {type(visual).__name__}, "
                f"which has no {', '.join(missing)}"
            )
        for block in visual.get_submodule(self.blocks_at):
            attention = block.get_submodule(self.attention_at)
            if not hasattr(attention, "qkv") and not all(hasattr(attention, name) for name in _SPLIT):
                raise ValueError(
                    "backbone blocks must have attention with q_proj, k_proj and v_proj or a packed qkv, "
                    f"got {type(attention).__name__}"
                )
            dropout = attention.dropout.p if isinstance(attention.dropout, nn.Module) else attention.dropout
            if dropout:
                raise ValueError(f"backbone must have attention_dropout=0 in its vision_config, got {dropout}")

    def widths(self, visual: Any) -> tuple[int, int]:
        width = int(visual.config.vision_config.hidden_size)
        return width, int(visual.get_submodule(self.heads[0]).out_features) if self.heads else width

    def image_size(self, model: Any) -> int:
        return int(model.config.vision_config.image_size)

    def text_length(self, model: Any) -> int:
        return int(model.config.text_config.max_position_embeddings)


class ClipTower(TransformersTower):
    """Visual tower of CLIPModel."""

    heads = ("visual_projection",)

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        return visual.vision_model.pre_layrnorm(super().embed(visual, images))

    def around_blocks(self, visual: Any) -> list[nn.Module]:
        return [*super().around_blocks(visual), visual.vision_model.pre_layrnorm]

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        return visual.visual_projection(visual.vision_model.post_layernorm(x[:, 0]))

    def encode_text(self, model: Any, tokens: Tensor) -> Tensor:
        return model.text_projection(model.text_model(input_ids=tokens).pooler_output)


class SiglipTower(TransformersTower):
    """Visual tower of SiglipModel, also for the SigLIP 2 checkpoints of fixed resolution.

    Both were trained on text in lower case. SigLIP's tokenizer lowers it; the one of a SigLIP 2 folder does not.
    """

    lower_case = True

    def leading_tokens(self, visual: Any) -> tuple[bool, int]:
        return False, 0

    def check(self, visual: Any) -> None:
        super().check(visual)
        if not hasattr(visual.vision_model, "head"):
            raise ValueError(
                "backbone must pool its tokens into one embedding for each image, got vision_use_head=False"
            )

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        return own_tensor(visual.vision_model.head(visual.vision_model.post_layernorm(x)))

    def encode_text(self, model: Any, tokens: Tensor) -> Tensor:
        return model.text_model(input_ids=tokens).pooler_output


class Siglip2Tower(SiglipTower):
    """Visual tower of Siglip2Model (NaFlex), on square images whose patches are the grid of its positions."""

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        embeddings = visual.vision_model.embeddings
        size = embeddings.patch_size
        B, C, height, width = images.shape
        patches = images.reshape(B, C, height // size, size, width // size, size).permute(0, 2, 4, 3, 5, 1)
        tokens = embeddings.patch_embedding(patches.flatten(3).flatten(1, 2).to(embeddings.patch_embedding.weight))
        return tokens + embeddings.position_embedding.weight

    def image_size(self, model: Any) -> int:
        settings = model.config.vision_config
        return math.isqrt(int(settings.num_patches)) * int(settings.patch_size)


class BlipTower(TransformersTower):
    """Visual tower of BlipForImageTextRetrieval with the embeddings of its contrastive heads; no matching head."""

    family = "blip"
    heads = ("vision_proj",)

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        return visual.vision_proj(visual.vision_model.post_layernorm(x[:, 0]))

    def encode_text(self, model: Any, tokens: Tensor) -> Tensor:
        is_word = (tokens != model.config.text_config.pad_token_id).long()
        states = model.text_encoder(input_ids=tokens, attention_mask=is_word).last_hidden_state
        return model.text_proj(states[:, 0])

    def text_length(self, model: Any) -> int:
        return min(_BLIP_CAPTION_LENGTH, super().text_length(model))


_TOWERS: dict[str, Callable[[], TransformersTower]] = {
    "clip": ClipTower,
    "siglip": SiglipTower,
    "siglip2": Siglip2Tower,
    "blip": BlipTower,
}


class TransformersBackbone(TowerBackbone):
    """Frozen CLIPModel, SiglipModel, Siglip2Model or BlipForImageTextRetrieval of transformers.

    Args:
        model: its parameters are frozen here.
        source: the id or folder of its image processor and tokenizer, which may be missing.

    Raises:
        ValueError: the model has another type, or blocks that this loop cannot run.
    """

    tower: TransformersTower

    def __init__(self, model: nn.Module, source: str) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in _TOWERS:
            raise ValueError(f"backbone must be a {' or '.join(_TOWERS)} of transformers, got {kind}")
        super().__init__(_TOWERS[kind](), "model")
        self.model = model.requires_grad_(False).eval()
        self.tower.check(self.model)
        self.depth = len(self.blocks)
        self.width, self.embed_dim = self.tower.widths(self.model)
        size = self.tower.image_size(self.model)
        self.image_size = (size, size)
        self.resize, self.normalise = load_image_processing(source, size if kind == "siglip2" else None)
        self.tokenizer = load_tokenizer(source, self.tower.text_length(self.model), lower=self.tower.lower_case)

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens)
        return self.tower.encode_text(self.model, tokens)


def load_transformers(source: str, pretrained: str | None) -> TransformersBackbone:
    """Load a model of transformers on the default device, in float32.

    Args:
        source: an id on the hub or a local folder.
        pretrained: any value but None means the weights that are stored in `source`; None needs only its
            ``config.json`` and means random weights, the same every time.
    """
    from transformers import AutoConfig, AutoModel, BlipForImageTextRetrieval

    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in _TOWERS:
            raise ValueError(f"its type must be {' or '.join(_TOWERS)}, got {config.model_type!r}")
        model: Any
        if pretrained is None:
            with repeatable_weights():
                blip = config.model_type == "blip"
                model = BlipForImageTextRetrieval(config) if blip else AutoModel.from_config(config)
        else:
            kind: Any = BlipForImageTextRetrieval if config.model_type == "blip" else AutoModel
            model, report = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
            if report["missing_keys"]:
                raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
            model = model.to(torch.get_default_device())
        return TransformersBackbone(model, source)
    except Exception as error:  # damaged or missing files can raise anything
        raise ValueError(
            f"backbone 'transformers:{source}' with pretrained={pretrained!r} could not be loaded: {error}"
        ) from error


def _attend(attention: Any, x: Tensor, delta_s: Tensor | None) -> Tensor:
    if isinstance(attention, SVDAttention):
        return attention(x, delta_s)
    B, T, D = x.shape
    projections = _projections(attention)
    projected = [layer(x) for layer in projections] if len(projections) == 3 else projections[0](x).chunk(3, dim=-1)
    query, key, value = (part.view(B, T, attention.num_heads, -1).transpose(1, 2) for part in projected)
    mixed = attend(query, key, value)
    return _output(attention)(mixed.transpose(1, 2).reshape(B, T, D))


def _projections(attention: Any) -> list[Any]:
    return [attention.qkv] if hasattr(attention, "qkv") else [getattr(attention, name) for name in _SPLIT]


def _output(attention: Any) -> Any:
    return attention.projection if hasattr(attention, "projection") else attention.out_proj
