"""Try seven ways that may make knowing the style help, on the validation concepts alone.

    hystar-fast experiments compare --config lean --output LEAN
    python bench/style_evidence.py --lean LEAN

Every way is Hystar with the rates that the comparison chose, trained with its steps and seeds, beside the comparison's
own runs: static offsets, Hystar, Hystar with a style from the first blocks, Hystar with the style of another picture.
Runs are kept in --runs; a second call makes only what is missing. Writes docs/results/style_evidence.json.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from unseen_demo import cell_of

from hystar_fast.experiments.experiment_settings import ExperimentSettings, read_experiment
from hystar_fast.experiments.splits import open_splits, recipe_of, train_method, trained_method, validate_method
from hystar_fast.experiments.variants import create_variant
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import StyleExtractor
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.retrieval.embed import embed_styles
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, write_json
from hystar_fast.train.contrastive_steps import ContrastiveSteps
from hystar_fast.train.loop import CheckpointPolicy, run_steps
from hystar_fast.train.pairs import PairBatch, PairSampler, TrainingPairs
from hystar_fast.train.processes import World

STATIC, HYSTAR, SHUFFLED = "static", "hystar", "hystar+style_order=shuffled"
COMPARED = (STATIC, HYSTAR, "hystar+style=prefix", SHUFFLED)  # loaded from the comparison
DROPPED, VECTORS, PENALTY, LONGER = 0.5, 8, 3.0, 3
app = typer.Typer(add_completion=False, help=__doc__)


class ChangedStyle(HystarMethod):
    """Encodes pictures by what `changed` makes of their style."""

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        style = self.style(images) if style is None else style
        assert style is not None
        return super().encode_image(images, self.changed(style))

    @abstractmethod
    def changed(self, style: Tensor) -> Tensor:
        """Return the style [B, d] that the hypernetworks read."""


class DroppedStyle(ChangedStyle):
    """In training, half of the pictures get no style: their offsets are the biases of the hypernetworks."""

    def changed(self, style: Tensor) -> Tensor:
        return style * (torch.rand(len(style), 1) >= DROPPED) if self.model.training else style


class StyleBank(ChangedStyle):
    """z is a mean of eight learned vectors, weighted by their likeness to the picture's style."""

    def __init__(self, model: Hystar) -> None:
        super().__init__(model)
        assert model.extractor is not None
        self.vectors = nn.Parameter(F.normalize(torch.randn(VECTORS, model.extractor.dim), dim=-1))

    def changed(self, style: Tensor) -> Tensor:
        weights = (10 * style @ F.normalize(self.vectors, dim=-1).T).softmax(-1)
        return weights @ self.vectors

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        return groups | {"dynamic": [*groups["dynamic"], self.vectors]}


class SmallOffsets(ChangedStyle):
    """The squared size of the offsets, relative to the singular values, is added to the loss."""

    def __init__(self, model: Hystar) -> None:
        super().__init__(model)
        pairs = self.criterion

        def criterion(query: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
            return pairs(query, target, mask) + PENALTY * self.penalty / len(self.model.hypernetworks)

        self.criterion = criterion  # type: ignore[assignment]

    def changed(self, style: Tensor) -> Tensor:
        self.penalty = torch.zeros(())
        for number, network in self.model.hypernetworks.items():
            block: object = self.model.backbone.blocks[int(number) - 1].attn
            assert isinstance(block, SVDAttention)
            self.penalty = self.penalty + network(style).square().mean() / block.in_proj.s.square().mean()
        return style


class ClassifiedStyle(StyleExtractor):
    """The probabilities of the styles by a linear classifier of the style vector."""

    def __init__(self, extractor: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.extractor, self.linear, self.dim = extractor, linear.requires_grad_(False), linear.out_features

    def features(self, inputs: Tensor) -> Tensor:
        return self.linear(self.extractor(inputs)).softmax(-1)


def classified(method: HystarMethod, settings: ExperimentSettings) -> HystarMethod:
    """Replace z by the probabilities of the styles, learned on the training drawings, and begin anew."""
    pairs = TrainingPairs(open_splits(settings).training, (), method.resize)
    drawn, labels = [], []
    for number, style in enumerate((*pairs.styles, pairs.images.gallery_style)):
        items = torch.arange(len(pairs)) if number == len(pairs.styles) else pairs.items_with(style)
        wanted = torch.full_like(items, -1 if number == len(pairs.styles) else number)
        images = pairs.load(items, wanted, torch.zeros(len(items), dtype=torch.float64)).images
        found = embed_styles(method, images)
        assert found is not None
        drawn.append(found)
        labels.append(torch.full((len(items),), number))
    linear, z, label = nn.Linear(drawn[0].shape[1], len(drawn)), torch.cat(drawn), torch.cat(labels)
    optimizer = torch.optim.AdamW(linear.parameters(), 0.1, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(linear(z), label).backward()
        optimizer.step()
    assert method.model.extractor is not None
    method.model.extractor = ClassifiedStyle(method.model.extractor, linear)
    for number, network in method.model.hypernetworks.items():
        assert isinstance(network, Hypernetwork)
        method.model.hypernetworks[number] = Hypernetwork(len(drawn), network.rank)
    return method


class EveryStyle(PairSampler):
    """About a quarter as many pictures in a batch, each with a query of every style that it has."""

    def batch(self, step: int) -> PairBatch:
        usual = super().batch(step)
        items = usual.items.repeat_interleave(len(self._available[0]))
        styles = torch.arange(len(self._available[0])).repeat(len(usual.items))
        kept = self._available[items, styles].bool().nonzero().flatten()[: self.batch_size]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        draws = torch.rand(len(kept), generator=generator, dtype=torch.float64)
        return PairBatch(items[kept], styles[kept], draws)


class EveryStyleSteps(ContrastiveSteps):
    def open(self) -> dict[str, Any]:
        identity = super().open()
        self._sampler = EveryStyle(self.pairs, self.recipe.batch_size, self.recipe.seed)
        self.pairs.labels = torch.arange(len(self.pairs))  # so that a picture is no negative of itself
        return identity


@dataclass(frozen=True)
class Way:
    """A change of Hystar, or of static offsets.

    Attributes:
        of: whose rates it takes.
        make: the changed method, from that of the comparison.
        steps: times those of the comparison.
        every_style: whether a picture is in a batch with all its styles.
    """

    of: str = HYSTAR
    make: Callable[[Any, ExperimentSettings], Method] = lambda method, settings: method
    steps: int = 1
    every_style: bool = False


WAYS = {
    "half of the styles dropped": Way(make=lambda method, _: DroppedStyle(method.model)),
    "bank of learned styles": Way(make=lambda method, _: StyleBank(method.model)),
    "small offsets": Way(make=lambda method, _: SmallOffsets(method.model)),
    "style classifier": Way(make=classified),
    "all styles of a picture in a batch": Way(every_style=True),
    "three times the steps": Way(steps=LONGER),
    "static, three times the steps": Way(of=STATIC, steps=LONGER),
}


def _train(method: Method, way: Way, rates: Mapping[str, float], settings: ExperimentSettings, seed: int) -> None:
    settings = settings.with_training(steps=way.steps * settings.training.steps)
    if not way.every_style:
        train_method(method, way.of, rates, settings, seed)
        return
    splits = open_splits(settings)
    recipe = recipe_of(rates, settings, seed, splits.styles)
    pairs = TrainingPairs(splits.training, splits.styles, method.resize)
    criterion: Any = getattr(method, "criterion", None)  # it takes the mask
    run_steps(EveryStyleSteps(method, lambda: pairs, recipe, criterion, World(), None), CheckpointPolicy())


def _hits(method: Method, settings: ExperimentSettings) -> Tensor:
    """Return [styles, concepts]: 1 where a drawing finds its own concept first, nan where there is none."""
    hits = validate_method(method, settings).hits(open_splits(settings).headline, 1)
    assert hits is not None
    return hits


def _run(name: str, seed: int, chosen: Mapping[str, Any], settings: ExperimentSettings, runs: Path) -> Tensor:
    path = runs / f"{name.replace(' ', '_')}-{seed}.pt"
    if not path.exists():
        if name in COMPARED:
            method = trained_method(name, seed, settings)
        else:
            way = WAYS[name]
            method = way.make(create_variant(way.of, settings.config(), seed=seed), settings)
            _train(method, way, chosen[way.of], settings, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_hits(method, settings), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    hits: Tensor = torch.load(path)
    typer.echo(f"{name}, seed {seed}: R@1 {100 * hits.nanmean(1).mean():.1f}")
    return hits


@app.command()
def compare(
    lean: Annotated[Path, typer.Option(help="Folder of the lean comparison.")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(help="0 for those of the comparison.")] = 0,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/style_evidence"),
    output: Annotated[Path, typer.Option(help="Folder of style_evidence.json.")] = Path("docs/results"),
) -> None:
    """Train every way, measure all on the validation concepts, and write the differences with their intervals."""
    settings = read_experiment("lean", [f"run.output={lean}"])
    settings = settings.with_training(steps=steps or settings.training.steps)
    chosen = read_json(lean / "tuning.json")["chosen"]
    hits = {
        name: torch.stack([_run(name, seed, chosen, settings, runs) for seed in range(seeds)]).mean(0)
        for name in (*COMPARED, *WAYS)
    }
    rows = {
        name: {"R@1": interval_info(bootstrap_mean(100 * found))}
        | {f"minus {other}": interval_info(bootstrap_mean(100 * (found - hits[other]))) for other in (STATIC, SHUFFLED)}
        for name, found in hits.items()
    }
    result = {
        **run_info(),
        "what": "R@1 of the validation concepts, displaced queries, mean over outline, sketch, lowres and seeds",
        "intervals": "95 %, paired bootstrap over concepts of the mean over seeds",
        "seeds": seeds,
        "steps": settings.training.steps,
        "chosen": {name: chosen[name] for name in (STATIC, HYSTAR)},
        "rows": rows,
    }
    write_json(output / "style_evidence.json", result)
    typer.echo("\n".join(table(result)))


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of docs/results/demo_findings.md."""
    columns = ["R@1", *(f"minus {other}" for other in (STATIC, SHUFFLED))]
    lines = ["| " + " | ".join(["", "R@1", "minus static", "minus shuffled"]) + " |", "|---" * 4 + "|"]
    return lines + [
        f"| {name} | {' | '.join(cell_of(row[c]) for c in columns)} |" for name, row in result["rows"].items()
    ]


if __name__ == "__main__":
    app()
