"""Zero-shot classification: the names of the classes are the gallery (Table 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_texts

TEMPLATES = ("a photo of a {}.",)


def class_embeddings(method: Method, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Return a unit vector for each class [C, D]: the normalised mean of its name in every template, as CLIP does it.

    An image belongs to the class whose vector is nearest, so accuracy is the recall of `target_ranks` with these
    vectors as the gallery and the class numbers as targets; ties count against the image.

    Args:
        method: the encoder; it must take text.
        names: the names of the classes; underscores are written as spaces.
        templates: each with one ``{}`` for the name.

    Raises:
        ValueError: no name or no template, a template without ``{}``, or a method that takes no text.

    Source: CLIP (Radford et al., 2021), Section 3.1.4. The paper does not say which templates it used.
    """
    if not names or not templates:
        raise ValueError(f"names and templates must not be empty, got {len(names)} and {len(templates)}")
    bad = [template for template in templates if template.count("{}") != 1]
    if bad:
        raise ValueError(f"templates must have one {{}} for the name of the class, got {bad[0]!r}")
    written = [name.replace("_", " ") for name in names]
    found = embed_texts(method, [template.format(name) for template in templates for name in written])
    if found is None:
        raise ValueError(f"method must take text to classify by the names of classes, got {method.name!r}")
    return F.normalize(found.unflatten(0, (len(templates), len(names))).mean(0), dim=-1)


def numbered(categories: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the distinct categories in alphabetical order, and the number of each entry among them, int64 [n].

    Example:
        >>> numbered(["cat", "ant", "cat"])
        (['ant', 'cat'], tensor([1, 0, 1]))
    """
    names = sorted(set(categories))
    number = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([number[category] for category in categories], dtype=torch.int64)


def number_labels(names: Sequence[str | None]) -> Tensor:
    """Return the number of each name, int64 [n]; None is a name of its own and matches nothing."""
    return numbered([f"{i}\0" if name is None else f"={name}" for i, name in enumerate(names)])[1]
