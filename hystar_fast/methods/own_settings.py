"""Settings of a method that makes its own steps: a section of a settings file, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.methods.step_trained import Batching


@dataclass(frozen=True)
class OwnSettings:
    """The base of these settings: to and from values that JSON can hold, and checks that name a wrong field.

    Attributes:
        section: of a settings file, which names of fields in messages begin with.
        title: of the method, in messages.
        stages: fields that hold the steps of its stages, in place of those of ``[optim]``.
        checkpoints_gradients: whether ``optim.gradient_checkpointing`` holds for it.
    """

    section: ClassVar[str]
    title: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()
    checkpoints_gradients: ClassVar[bool] = False

    @property
    def own_network(self) -> str | None:
        """The network that it has in place of the backbone, with its weights; None where it takes the backbone."""
        return None

    @property
    def batching(self) -> Batching:
        """How a run makes its batches."""
        return Batching()

    @property
    def steps(self) -> int:
        """The steps of all its stages; 0 where ``[optim]`` has them."""
        return sum(getattr(self, name) for name in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings of some values; the others are the defaults.

        Raises:
            ValueError: an unknown name; the message suggests the nearest one.
        """
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"settings must be those of {cls.title}, got {with_nearest(name, known)}")
        return cls(**values)

    def _check_choices(self, choices: Mapping[str, Sequence[object]]) -> None:
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                listed, got = ", ".join(map(repr, allowed)), with_nearest(getattr(self, name), allowed)
                raise ValueError(f"{self.section}.{name} must be one of {listed}, got {got}")

    def _check_flags(self, names: Sequence[str]) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{self.section}.{name} must be True or False, got {getattr(self, name)!r}")

    def _check_counts(self, least: Mapping[str, int]) -> None:
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"{self.section}.{name} must be a whole number of at least {smallest}, got {value!r}")

    def _check_numbers(
        self, *, above_zero: Sequence[str] = (), at_least_zero: Sequence[str] = (), finite: Sequence[str] = ()
    ) -> None:
        for names, words in ((above_zero, " and above 0"), (at_least_zero, " and at least 0"), (finite, "")):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise TypeError(f"{self.section}.{name} must be a number, got {value!r}")
                if not math.isfinite(value) or (words and value < 0) or (value == 0 and words == " and above 0"):
                    raise ValueError(f"{self.section}.{name} must be finite{words}, got {value}")
