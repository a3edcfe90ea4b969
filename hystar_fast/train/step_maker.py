"""The maker of a run's steps: what differs between the ways to train; `train.loop` does the rest for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import optim

from hystar_fast.methods.interface import Method
from hystar_fast.train.recipe import Recipe


class StepMaker(ABC):
    """A method with its data and its optimisers.

    A step must depend on the parameters, the optimisers' states, the seed and its number only, so that a resumed run
    makes the same steps as an uninterrupted one.

    Attributes:
        method: the method that trains.
        recipe: of the run.
        optimizers: what a checkpoint holds beside the method: one optimiser, or several by name.
    """

    method: Method
    recipe: Recipe
    optimizers: optim.Optimizer | Mapping[str, optim.Optimizer]

    @abstractmethod
    def open(self) -> dict[str, Any]:
        """Open the data, once a checkpoint is loaded; return what a resumed run must share with the first one."""

    def preload(self) -> None:
        """Compute in advance what every step needs."""
        return

    @property
    def reads_ahead(self) -> bool:
        """Tell whether `prepare` is worth a thread that works while a step runs."""
        return True

    @abstractmethod
    def prepare(self, step: int) -> Any:
        """Load the batch of a step, from 0; may run in a thread."""

    @abstractmethod
    def make(self, step: int, batch: Any) -> dict[str, Any]:
        """Change the parameters by one step, and return its line of the log, with at least "loss".

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """

    @property
    @abstractmethod
    def skipped(self) -> dict[str, str]:
        """Path -> reason of the pictures that could not be read so far."""
