"""The index that is served: its live generation with the models that made it, exchanged whole when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.index.engine import Engine, EngineUnavailable, Generation
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.serve.encoder import Encoder, Picture

LoadMethods = Callable[[Engine, Generation], Mapping[str, Method]]
"""Loads the method of each view of a generation."""
_POLL = 0.4  # seconds; changes are seen within one second


@dataclass(frozen=True, eq=False)
class Live:
    """One generation with its encoder.

    Attributes:
        generation: its number.
        stamps: view -> SHA-256 of what made its vectors; the first view is the default.
        encoder: encodes for every view.
        takes_words, takes_styles: the views with a text encoder, and with a style input.
        tag: begins the names of the styles that this generation may use.
    """

    generation: int
    stamps: Mapping[str, str]
    encoder: Encoder
    takes_words: frozenset[str]
    takes_styles: frozenset[str]

    def similarity(self, view: str) -> Similarity:
        """Return the similarity of the method of a view."""
        return self.encoder.methods[view].similarity

    @property
    def default_view(self) -> str:
        return next(iter(self.stamps))

    @property
    def tag(self) -> str:
        return f"{self.stamps[self.default_view][:16]}/"


class LiveIndex:
    """An engine and its live generation; a thread looks for changes.

    Args:
        engine: the index.
        load: opens the methods of a generation.
        make_encoder: starts an encoder for them.
        on_change: called with every generation that becomes live.
        log: called with a line when the engine is lost or found again, or a generation cannot be loaded.
    """

    def __init__(
        self,
        engine: Engine,
        load: LoadMethods,
        make_encoder: Callable[[Mapping[str, Method]], Encoder],
        *,
        on_change: Callable[[Live], object] = lambda live: None,
        log: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.engine, self._load, self._make_encoder = engine, load, make_encoder
        self._on_change, self._log = on_change, log
        self.is_up = True
        self._stop = threading.Event()
        self._version, self._styles_lock = engine.version(), threading.Lock()  # what is written later is looked at
        self.live = self._start(engine.generation())
        self._read_styles()
        self._items = engine.count()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Finish what waits, and end the threads; the engine stays open."""
        self._stop.set()
        self._watcher.join()
        self.live.encoder.close()

    @property
    def count(self) -> int:
        """The number of items, as last seen."""
        return self._items

    # styles: their names begin with the stamp, as a style vector of another model means nothing

    def styles(self, live: Live) -> dict[str, Tensor]:
        """Return name -> z of the styles that were made by the model of a generation."""
        tag = live.tag
        return {name.removeprefix(tag): z for name, z in self._styles.items() if name.startswith(tag)}

    def style(self, live: Live, name: str) -> Tensor | None:
        """Return one style."""
        return self._styles.get(live.tag + name)

    def put_style(self, live: Live, name: str, z: Tensor) -> None:
        """Keep a style in the engine."""
        self.engine.put_style(live.tag + name, z)
        self._read_styles()

    def delete_style(self, live: Live, name: str) -> bool:
        """Remove a style; return whether there was one."""
        found = self.engine.delete_style(live.tag + name)
        self._read_styles()
        return found

    def _read_styles(self) -> None:
        with self._styles_lock:  # of two threads, the one that reads later must also be the one that writes later
            self._styles = self.engine.styles()

    # changes

    def _watch(self) -> None:
        while not self._stop.wait(_POLL):
            try:
                self._look()
            except EngineUnavailable as error:
                self._report(False, f"the index cannot be reached: {error}")
            except Exception as error:
                self._report(self.is_up, f"the index has changed and cannot be used: {error}")
            else:
                self._report(True, "the index can be reached again")

    _said = ""

    def _report(self, is_up: bool, line: str) -> None:
        if is_up != self.is_up or (line != self._said and not line.endswith("again")):
            self._log(line)
        self.is_up, self._said = is_up, line

    def _look(self) -> None:
        """Take over what has changed since the last look."""
        self.engine.health()
        version = self.engine.version()
        if version == self._version:
            return
        generation = self.engine.generation()
        if (generation.number, _sha256(generation)) != (self.live.generation, self.live.stamps):
            before, self.live = self.live, self._start(generation)  # by its stamps, too: an index may be made anew
            before.encoder.close()
        self._read_styles()
        self._items, self._version = self.engine.count(), version

    def _start(self, generation: Generation) -> Live:
        """Load the models of a generation and warm them up: one picture, one text and one search each."""
        methods = dict(self._load(self.engine, generation))
        encoder = self._make_encoder(methods)
        styled, worded = set(), set()
        for view, method in methods.items():
            image = torch.zeros(3, *method.resize.size, dtype=torch.uint8)
            vector = encoder.picture(view, Picture(image)).result().result
            with torch.inference_mode():
                if method.style(image[None]) is not None:
                    styled.add(view)
                if method.encode_text(["a picture"]) is not None:
                    worded.add(view)
            self.engine.search(view, vector[None], 1, generation=generation.number, similarity=method.similarity)
        live = Live(generation.number, _sha256(generation), encoder, frozenset(worded), frozenset(styled))
        self._on_change(live)
        return live


def _sha256(generation: Generation) -> dict[str, str]:
    return {view: stamp.sha256 for view, stamp in generation.stamps.items()}
