"""FreestyleRet's style prompts: tokens made of each image's Gram matrix, in front of the first and the last block.

Written from the abstract of Li et al., FreestyleRet (ECCV 2024), and from the behaviour of its public code. Differences
between the two, and between one training run here and the several of the code, are resolved as follows:

- The tokens depend on the image, as the method is described. The last version of the public code computes them and then
  uses learned tokens that are the same for all images (it assigns to an attribute of the parameter).
- The style space: the code first trains with the Gram tokens alone, then takes the mean token of each labelled style as
  a fixed centre, then trains again. Here the centres start from k-means over the Gram tokens of the first training
  batch, without labels, and are trained with the rest.
- The Gram matrix is divided by the number of positions; torchvision's VGG-16 up to relu2_1 replaces the normalised
  VGG-19 (the same layers; the code also keeps the later ones, unused); CLIP's layer norms stay frozen; the loss is that
  of all methods here, not a triplet loss.

On ViT-L/14 10,112,772 parameters are trained here. Table 5 of Hystar counts 476 M, 11.5 % more than CLIP: that is the
public code with its unused parts (VGG-19 beyond relu2_1, a second embedding and map, 8,192 in tokens).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.adapter_format import fingerprint
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.random_weights import repeatable_weights
from hystar_fast.models.vgg import gram, vgg_features

PROMPTS, CENTRES = 4, 4
_RELU2_1, _CHANNELS, _HALVINGS = 7, 128, 2  # layers kept, their channels, and the reduction of the side
_EMBEDDED, _GRID = 256, 7  # channels whose Gram matrix is taken, and about how many patches a side


class StyleSpace(nn.Module):
    """The tokens of an image as a mixture of centres: s(t) = Σ_k softmax_k(cos(t, c_k)) c_k.

    Args:
        centres: how many.
        size: of one image's tokens, flattened.
    """

    def __init__(self, centres: int, size: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(centres, size))

    @torch.no_grad()
    def place(self, tokens: Tensor) -> None:
        """Initialise the centres by k-means over tokens [n, size], unless they are initialised."""
        if not bool(self.centres.any()):
            self.centres.copy_(k_means(tokens.float(), len(self.centres)))

    def forward(self, tokens: Tensor) -> Tensor:
        centres = self.centres.to(tokens.dtype)
        weights = (F.normalize(tokens, dim=-1) @ F.normalize(centres, dim=-1).mT).softmax(dim=-1)
        return weights @ centres


def k_means(points: Tensor, centres: int, iterations: int = 20) -> Tensor:
    """Return centres [k, d] of points [n, d] by Lloyd's iteration, started from points far from each other.

    Example:
        >>> k_means(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2).sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    found = points[(points - points.mean(0)).square().sum(-1).argmax()][None]
    while len(found) < centres:
        found = torch.cat([found, points[torch.cdist(points, found).amin(1).argmax()][None]])
    for _ in range(iterations):
        nearest = F.one_hot(torch.cdist(points, found).argmin(1), centres).to(points.dtype)
        sizes = nearest.sum(0)[:, None]
        found = torch.where(sizes > 0, nearest.mT @ points / sizes.clamp_min(1), found)
    return found


class StylePrompted(nn.Module):
    """A CLIP whose image tower gets tokens that depend on the image's style.

    Args:
        backbone: the frozen CLIP.
        prompts: tokens of each of the two kinds.
        centres: of the style space.
        vgg: the frozen layers whose feature maps describe the style.
    """

    def __init__(self, backbone: TowerBackbone, prompts: int, centres: int, vgg: nn.Sequential) -> None:
        super().__init__()
        backbone.tower.check_insertion(backbone.visual)
        self.backbone, self.vgg, self.prompts = backbone, vgg, prompts
        side, width = min(backbone.image_size) >> (_HALVINGS - 1), backbone.width
        patch = max(1, side // _GRID)  # 16 at 224 pixels, as published
        self.embed = nn.Conv2d(_CHANNELS, _EMBEDDED, patch, patch)
        self.pool = nn.Linear(_EMBEDDED, prompts)
        self.map = nn.Sequential(nn.Linear(_EMBEDDED, 512), nn.Linear(512, 1024), nn.Linear(1024, width))
        self.space = StyleSpace(centres, prompts * width)
        self.to(next(backbone.parameters()).device)

    def gram_tokens(self, images: Tensor) -> Tensor:
        """Return tokens [B, prompts, width] of the Gram matrix of preprocessed images."""
        with torch.no_grad():
            maps = self.vgg(images.to(next(self.vgg.parameters()).dtype))
        return self.map(self.pool(gram(self.embed(maps))).mT)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, H, W] as [B, D], not normalised."""
        backbone, count = self.backbone, self.prompts
        backbone.check_images(images)
        deep = self.gram_tokens(images)
        if self.training:
            self.space.place(deep.flatten(1))
        shallow = self.space(deep.flatten(1)).view_as(deep)
        visual, tower, leading = backbone.visual, backbone.tower, backbone.leading_tokens[1]
        x = _insert(tower.embed(visual, images), shallow, leading)
        for number, block in enumerate(backbone.blocks, start=1):
            if number == backbone.depth:
                x = _insert(x, deep, leading)
            x = tower.pass_block(block, x, None, recompute=backbone.recomputes)
        return tower.pool(visual, torch.cat([x[:, :leading], x[:, leading + 2 * count :]], dim=1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, L] as [B, D] with the unchanged text tower."""
        return self.backbone.encode_text(tokens)


def published_size(model: StylePrompted) -> int:
    """Count the parameters of the public code beside CLIP, unused ones included, as Table 5 of the paper does.

    The unused ones are a second embedding and map, learned tokens instead of the centres (a file there), and all of
    VGG-19's convolutions after one more that mixes the colours.
    """
    from torchvision.models import vgg19

    with torch.device("meta"):
        unused = [vgg19().features, nn.Conv2d(3, 3, 1), nn.Conv2d(_EMBEDDED, _EMBEDDED, model.embed.kernel_size[0])]
    tokens = 2 * model.prompts * model.backbone.width
    held = [model.embed, model.pool, model.map, model.map, *unused]
    return tokens + sum(parameter.numel() for module in held for parameter in module.parameters())


class StylePrompts(Adapted):
    """Style prompts for a frozen CLIP: x_1 = [cls, s(t), patches] and x_L = [cls, t, …] with t = map(pool(G(image))).

    It does not start as the frozen model: its tokens take part in attention from the first step. On ViT-L/14 it has
    10,112,772 parameters.

    Args:
        backbone: changed in place.
        criterion: loss of (query, target).
        prompts: tokens of each kind.
        centres: of the style space.
        vgg: weights, see :func:`hystar_fast.models.vgg.vgg_features`; random ones describe texture too, but worse.

    Raises:
        ValueError: `prompts` or `centres` is not positive, or `vgg` names no weights.

    Source: Li et al., FreestyleRet: Retrieving Images from Style-Diversified Queries (ECCV 2024), and its
    public code; the differences are listed at the top of this file.
    """

    name = "freestyle"
    initialises_from_first_batch = True

    def __init__(
        self,
        backbone: TowerBackbone,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        prompts: int = PROMPTS,
        centres: int = CENTRES,
        vgg: str | None = None,
    ) -> None:
        super().__init__(backbone, criterion)
        for name, value in (("prompts", prompts), ("centres", centres)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        try:
            with repeatable_weights():
                layers = vgg_features(vgg)[:_RELU2_1]
        except Exception as error:  # loaders of damaged or missing weights raise anything
            raise ValueError(f"vgg={vgg!r} could not be loaded: {error}") from error
        self.settings = {"prompts": prompts, "centres": centres}
        self.fingerprints = {"vgg": fingerprint(layers.state_dict().items())}
        self.model: StylePrompted = StylePrompted(backbone, prompts, centres, layers).eval()
        self.modules = (self.model,)


def _insert(x: Tensor, tokens: Tensor, place: int) -> Tensor:
    """Insert tokens [B, P, D] into x [B, T, D] after its first `place`."""
    return torch.cat([x[:, :place], tokens.to(x.dtype), x[:, place:]], dim=1)
