"""Options of a search, and their check before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SearchSettings:
    """Options of a search, by the names of their options.

    Raises:
        ValueError: there is neither a picture nor a word, or a file does not exist.
    """

    query: list[Path]
    text: str | None
    style: Path | None
    combine: str
    where: str | None
    top: int
    picture: Path | None
    view: str | None
    device: str
    modality: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError(f"--text must hold a word, got {self.text!r}")
        if not self.query and self.text is None:
            raise ValueError(
                "--query or --text must be given, got neither: hystar-fast search --query sketch.png, or "
                "hystar-fast search --text 'a red heart'"
            )
        if not self.query and self.style is not None:
            raise ValueError(f"--style must belong to a --query, got {self.style} with words alone")
        if not self.query and self.modality is not None:
            raise ValueError(f"--modality must belong to a --query, got {self.modality!r} with words alone")
        for option, path in [*(("--query", path) for path in self.query), ("--style", self.style)]:
            if path is not None and not path.is_file():
                raise ValueError(f"{option} must be an image file, but {path} does not exist or is not a file")
        if self.picture is not None and len(self.query) > 1:
            raise ValueError(f"--picture must be left out for several queries, got {len(self.query)}")
