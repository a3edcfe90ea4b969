"""Teachers of FGAN's label distributions, frozen and used in training alone, and the labels of its ablations."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.models.adapter_format import not_finite
from hystar_fast.models.random_weights import repeatable_weights
from hystar_fast.models.torch_files import read_torchvision

TEACHERS = ("network", "prototypes", "names", "random", "one-hot", "class-words")
SCALE = 30.0
CLASSES = 1000  # of ImageNet, which the network tells apart
LEAST_PERPLEXITY, LARGEST_PERPLEXITY = 3.0, 100.0


class NetworkTeacher(nn.Module):
    """Probabilities [B, C] of a frozen classifier of images (Eq. 19). It stays in evaluation mode.

    Args:
        network: normalised images -> logits [B, C].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the labels of a picture must not depend on its batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(-1, dtype=torch.float32)


class PrototypeTeacher(nn.Module):
    """Probabilities [B, C] of prototypes by their cosine to a picture's embedding: ``softmax(scale cos(f, c_k))``.

    A prototype is the embedding of another drawing of a concept, or of its name. With the picture itself among the
    prototypes, or a large scale, the labels become one-hot, which teaches little (Table 4): see `perplexity`.

    Args:
        prototypes: [C, D], of any length.
        scale: the inverse of a temperature.

    Raises:
        ValueError: `prototypes` is not [C, D] with C of at least 2, or `scale` is not above 0.

    >>> teacher = PrototypeTeacher(torch.eye(2), scale=1.0)
    >>> teacher(torch.tensor([[2.0, 0.0]]))
    tensor([[0.7311, 0.2689]])
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, scale: float = SCALE) -> None:
        super().__init__()
        if prototypes.ndim != 2 or len(prototypes) < 2:
            raise ValueError(f"prototypes must be [C, D] with C of at least 2, got {list(prototypes.shape)}")
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = scale
        self.register_buffer("prototypes", F.normalize(prototypes.detach().float(), dim=-1))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.normalize(features.float(), dim=-1) @ self.prototypes.mT
        return (self.scale * cosines).softmax(-1)


def load_resnet50(pretrained: str | None) -> nn.Module:
    """Load the paper's teacher, torchvision's ResNet-50 for ImageNet's 1,000 classes.

    Args:
        pretrained: the name of torchvision weights (the paper's: "IMAGENET1K_V1"), a local state dict, or None for
            random weights, which teach noise.

    Raises:
        ValueError: the weights cannot be loaded, do not fit or are not finite.
    """
    from torchvision.models import ResNet50_Weights, resnet50

    with repeatable_weights():
        network: nn.Module = resnet50()
    if pretrained is not None:
        load_into(network, pretrained, ResNet50_Weights)
    return network


def load_into(network: nn.Module, pretrained: str, known: Any, part: str = "") -> None:
    """Load a local state dict, or torchvision weights `known` by their name, into a network.

    Args:
        network: gets the tensors.
        pretrained: a file, or a name.
        known: torchvision's enumeration of weights.
        part: take the tensors whose names begin so, without it.

    Raises:
        ValueError: they cannot be loaded, do not fit or are not finite.
    """
    try:
        stored = read_torchvision(pretrained, known)
        network.load_state_dict({n.removeprefix(part): value for n, value in stored.items() if n.startswith(part)})
    except Exception as error:  # damaged or missing weights can raise anything
        raise ValueError(
            f"pretrained must be the name of torchvision weights or a state dict, got {pretrained!r}: {error}"
        ) from error
    broken = not_finite(network.state_dict().items())
    if broken:
        raise ValueError(f"pretrained must hold finite weights, got NaN or inf in {broken} of {pretrained!r}")


def random_labels(count: int, labels: int, generator: torch.Generator | None = None) -> Tensor:
    """Return softmax of normal numbers [count, labels], others at every call: labels without a meaning (Table 4)."""
    return torch.randn(count, labels, generator=generator).softmax(-1)


def one_hot_labels(teacher: Tensor) -> Tensor:
    """Return 1 at the largest of each row's probabilities [B, C] and 0 elsewhere: labels without a rest (Table 4)."""
    return F.one_hot(teacher.argmax(-1), teacher.shape[-1]).to(teacher.dtype)


def class_word_labels(words: Tensor, scale: float = SCALE) -> Tensor:
    """Return ``softmax(scale w / |w|)`` of the embeddings w [B, D] of each item's class name (Table 4).

    The labels are then the D directions of the word space, in the place of the teacher's classes; every item of a class
    has the same ones.

    Source: Ge et al. 2025, section 5.3.4, which names the ablation and gives no formula.
    """
    return (scale * F.normalize(words.detach().float(), dim=-1)).softmax(-1)


def perplexity(teacher: Tensor) -> float:
    """Return the mean over rows of exp(entropy) of probabilities [B, C]: 1 for one-hot rows, C for uniform ones.

    Between `LEAST_PERPLEXITY` and `LARGEST_PERPLEXITY` labels say more than a class and less than everything.

    >>> perplexity(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    1.5
    """
    teacher = teacher.double()
    return torch.special.entr(teacher).sum(-1).exp().mean().item()
