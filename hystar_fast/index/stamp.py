"""The stamp of vectors: what made them. Vectors of different stamps are never compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hystar_fast.data.images import READER_RULES
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import COSINE_NAME

# where weights lie (their hashes are compared instead), and what only training uses
_NOT_COMPARED = frozenset(
    {
        *("backbone", "pretrained", "pretrained_tag", "style_pretrained"),
        *("temperature", "gamma", "lam", "epsilon", "n_iter", "weights", "plan_grad", "hypernetwork_init"),
    }
)
_SHOWN = 60  # characters of a value in an error message


class StampMismatch(ValueError):
    """Vectors were made by something else; the message names each field with both values."""


@dataclass(frozen=True)
class Stamp:
    """Everything that decides the vector of a picture.

    Attributes:
        values: JSON values by a dotted name: "method", "settings.…", "config.…", "fingerprints.…" of the frozen
            weights, "tensors_sha256" of the adapter, "reader.…" (the rules by which a file becomes pixels), "dimension"
            and "metric".

    Example:
        >>> one = Stamp({"method": "hystar", "dimension": 512})
        >>> one.check(Stamp({"method": "lora", "dimension": 512}), "runs/index")
        Traceback (most recent call last):
        hystar_fast.index.stamp.StampMismatch: runs/index must have vectors of one model, got method 'hystar' in it \
and 'lora' now
    """

    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The values as canonical JSON."""
        return json.dumps(dict(self.values), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The SHA-256 of `text`: equal for vectors that may be compared."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def dimension(self) -> int:
        return int(self.values["dimension"])

    @property
    def metric(self) -> str:
        """The name of the similarity by which the vectors are compared."""
        return str(self.values.get("metric", COSINE_NAME))

    def differences(self, other: Stamp) -> list[str]:
        """Return the names of the values that differ."""
        names = sorted({*self.values, *other.values})
        return [name for name in names if self.values.get(name) != other.values.get(name)]

    def check(self, other: Stamp, name: str) -> None:
        """Raise StampMismatch unless `other`, of vectors that are to join or to search those of `self`, is the same.

        Args:
            other: of the model that is used now.
            name: of the index, for the message.
        """
        fields = self.differences(other)
        if fields:
            found = "; ".join(
                f"{f} {_shown(self.values.get(f))} in it and {_shown(other.values.get(f))} now" for f in fields
            )
            raise StampMismatch(f"{name} must have vectors of one model, got {found}")


def list_stamps(stamps: Mapping[str, Stamp]) -> list[list[Any]]:
    """Return [view, values] of each stamp, for JSON: a list keeps the order of the views."""
    return [[view, dict(stamp.values)] for view, stamp in stamps.items()]


def stamps_from(listed: Iterable[Any]) -> dict[str, Stamp]:
    """Return view -> stamp of what `list_stamps` made."""
    return {view: Stamp(values) for view, values in listed}


def check_stamps(stamps: Mapping[str, Stamp], others: Mapping[str, Stamp], name: str) -> None:
    """Raise StampMismatch unless all views of two generations have the same stamps; arguments as `Stamp.check`."""
    if set(stamps) != set(others):
        found = f"the views {', '.join(stamps)} in it and {', '.join(others)} now"
        raise StampMismatch(f"{name} must have vectors of one model, got {found}")
    for view, stamp in stamps.items():
        stamp.check(others[view], name)


def stamp_of(method: Method, dimension: int, adapter: Mapping[str, Any] | None) -> Stamp:
    """Return the stamp of the vectors of a method.

    Args:
        method: the encoder.
        dimension: D of its vectors.
        adapter: the description of its adapter (`read_description`), which was read with it; None if it has none.
    """
    adapter = adapter or {"fingerprints": method.fingerprints, "tensors_sha256": None}
    config = {} if method.config is None else method.config.to_dict()
    values: dict[str, Any] = {
        "method": method.name,
        "tensors_sha256": adapter["tensors_sha256"],
        "dimension": dimension,
        "metric": method.similarity.name,
        "config.library": None if method.config is None else method.config.backbone.partition(":")[0],
        "reader.resize": repr(method.resize),
    }
    parts: dict[str, Mapping[str, Any]] = {
        "settings": method.settings,
        "config": {name: value for name, value in config.items() if name not in _NOT_COMPARED},
        "fingerprints": adapter["fingerprints"],
        "reader": READER_RULES,
    }
    for part, entries in parts.items():
        values |= {f"{part}.{name}": value for name, value in entries.items()}
    return Stamp(json.loads(json.dumps(values)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-8:]}"
