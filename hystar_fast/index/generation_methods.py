"""The methods of a generation: where their adapters lie, their stamps, and how pictures are encoded with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.images import Resize
from hystar_fast.index.engine import ADAPTED, FROZEN, Engine, Generation
from hystar_fast.index.kept_adapters import WRITTEN, adapter_place, kept_notes, name_adapter
from hystar_fast.index.stamp import Stamp, stamp_of
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.device import BATCH_ON_CPU, batch_size_on, on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.models.adapter_format import read_description
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.embed import check_finite, embed_images


@dataclass(frozen=True)
class Made:
    """The arguments of `create_generation` of an engine."""

    stamps: Mapping[str, Stamp]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Encoder:
    """Encodes pictures with every view of a generation.

    Attributes:
        methods: view -> its method; all have one `resize`.
        batch_size: pictures of one call.
    """

    methods: Mapping[str, Method]
    batch_size: int = BATCH_ON_CPU

    @property
    def resize(self) -> Resize:
        return next(iter(self.methods.values())).resize

    def encode(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return view -> unit vectors [n, D] of pictures [n, 3, H, W].

        Raises:
            FloatingPointError: a vector is not finite; the message has the name of its picture.
        """
        found = {}
        for view, method in self.methods.items():
            found[view] = embed_images(method, pixels).float()
            check_finite(method, found[view], names)
        return found


def save_generation(method: Method, folder: Path, *, with_frozen: bool = False) -> Made:
    """Write the adapter of a method beside an index, and return the stamps and notes of a generation made with it.

    Args:
        method: a trained method, or the frozen backbone, which has no adapter to write.
        folder: of the index. The adapter goes into ``adapter``, or ``adapter-2`` and so on where that is another one.
        with_frozen: add a view of the frozen backbone.

    Raises:
        ValueError: the method cannot be saved.
    """
    stamps: dict[str, Stamp] = {}
    notes: dict[str, Any] = {}
    views = views_of(method, with_frozen=with_frozen)
    if ADAPTED in views:
        place, is_new = _write_adapter(method, folder)
        stamps[ADAPTED] = _stamp(method, read_description(place))
        notes = {"adapter": place.name, "written": is_new}
    if FROZEN in views and method.config is not None:
        stamps[FROZEN] = _stamp(views[FROZEN], None)
        notes["frozen"] = method.config.to_dict()
    return Made(stamps, notes)


def views_of(method: Method, *, with_frozen: bool = False) -> dict[str, Method]:
    """Return view -> method of an index that a method makes; arguments and errors as `save_generation`."""
    is_bare = method.name == FROZEN and not method.style_means
    views = {FROZEN if is_bare else ADAPTED: method}
    if with_frozen and FROZEN not in views:
        if method.config is None:
            raise ValueError(f"with_frozen must be False for {method.name!r}, which has no frozen backbone")
        views[FROZEN] = create_method(FROZEN, method.config)
    return views


def keep_generation(engine: Engine, method: Method, *, with_frozen: bool = False) -> Made:
    """Keep the adapter of a method in an index, and return the stamps and notes of a generation made with it.

    Raises:
        ValueError: as `save_generation`; or the engine has no place for an adapter.
    """
    if engine.folder is not None:
        return save_generation(method, engine.folder, with_frozen=with_frozen)
    with TemporaryDirectory(prefix="hystar-fast-") as folder:
        made = save_generation(method, Path(folder), with_frozen=with_frozen)
        return Made(made.stamps, kept_notes(engine, made.notes, Path(folder)))


def _write_adapter(method: Method, folder: Path) -> tuple[Path, bool]:
    """Write an adapter and return its folder, and whether it is new; an equal one that is there already is taken."""
    shutil.rmtree(folder / WRITTEN, ignore_errors=True)
    save_method(method, folder / WRITTEN)
    return name_adapter(folder)


def open_view(engine: Engine, generation: Generation, view: str) -> Method:
    """Return the method that made the vectors of a view.

    Raises:
        ValueError: the adapter or the backbone cannot be read; StampMismatch if it is another than the index was made
            with.
    """
    notes, description = generation.notes, None
    if view == FROZEN:
        method = create_method(FROZEN, HystarConfig.from_dict(notes["frozen"]))
    else:
        with adapter_place(engine, str(notes["adapter"])) as place:
            method, description = load_method(place), read_description(place)
    made, now = generation.stamps[view], _stamp(method, description)
    if made.values.get("format") == 1:  # it says less
        now = Stamp({name: 1 if name == "format" else now.values.get(name) for name in made.values})
    made.check(now, engine.uri)
    return method


def open_views(engine: Engine, generation: Generation) -> dict[str, Method]:
    """Return the method of every view of a generation; errors as `open_view`."""
    return {view: open_view(engine, generation, view) for view in generation.views}


def open_encoder(engine: Engine, generation: Generation, device: torch.device) -> Encoder:
    """Return the encoder of all views of a generation; errors as `open_view`."""
    return encoder_with(open_views(engine, generation), device)


def encoder_with(methods: Mapping[str, Method], device: torch.device) -> Encoder:
    """Return the encoder of methods (view -> method), which are moved to a device."""
    moved = {view: on_device(method, device) for view, method in methods.items()}
    return Encoder(moved, batch_size_on(device))


def encoder_of(engine: Engine, device: torch.device, generation: int | None = None) -> Callable[[], Encoder]:
    """Return a function that opens the encoder of a generation, by default of the live one."""
    return lambda: open_encoder(engine, engine.generation(generation), device)


def _stamp(method: Method, description: Mapping[str, Any] | None) -> Stamp:
    with torch.no_grad():
        dimension = embed_images(method, torch.full((1, 3, *method.resize.size), 128, dtype=torch.uint8)).shape[1]
    return stamp_of(method, int(dimension), description)
