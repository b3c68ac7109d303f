"""Maps of a run's embeddings: windows as points in two dimensions, coloured by dataset, person and label."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from lsm_jax.data.loader import evaluation_batches
from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError
from lsm_jax.evals.suite import unique_names
from lsm_jax.export.levels import embed_level
from lsm_jax.report.render import number, readable
from lsm_jax.report.style import HUES, LIGHT, hide_frame, inline_svg, new_figure, styled
from lsm_jax.train.run import Run

SPLIT = "test"
_BATCH_SIZE = 256
_MIN_WINDOWS = 10
_ROUNDING = 1e-6  # of the largest value: smaller differences of embeddings are rounding noise
_PERPLEXITY = 30
_MAX_LABELS = 4
_MARKERS = "osD^vP"  # with the hues, so that classes differ in more than colour
_QUARTERS = ("blue", "sky", "amber", "vermilion")  # from low to high
_MAX_NAME = 24  # letters of a class in the legend


@dataclasses.dataclass(frozen=True)
class EmbeddedWindows:
    """Windows with an embedding, in the order of their datasets.

    Attributes:
      step: training steps behind the embeddings.
      vectors: day embeddings as `lsm embed` writes them.
      datasets, people: name of the dataset and pseudonym of the person, of each window.
      labels: of each window.
    """

    step: int
    vectors: Float[np.ndarray, "n d"]
    datasets: tuple[str, ...]
    people: tuple[str, ...]
    labels: tuple[Mapping[str, float | str], ...]


def embed_split(
    run: Run,
    datasets: Sequence[Dataset],
    max_windows: int,
    progress: Callable[[int, int], None] | None = None,
) -> EmbeddedWindows:
    """Embeds windows of the test split, at most the same number of each dataset, spread evenly over it.

    Raises:
      UserError: there are too few windows for a map, or all have the same embedding.
      RunError: an embedding is not finite.
    """
    rows, vectors, done = [], [], 0
    limit = max(max_windows // max(len(datasets), 1), 1)
    total = sum(min(len(dataset.source(SPLIT)), limit) for dataset in datasets)
    for name, dataset in unique_names(datasets).items():
        for batch, infos in evaluation_batches(dataset.source(SPLIT), run.spec, _BATCH_SIZE, limit):
            found = embed_level(run, batch, len(infos), "day").vectors
            kept = np.isfinite(found).all(axis=1)  # the others have no token
            vectors.append(found[kept])
            rows += [(name, info.participant, info.window.labels) for info in np.array(infos, object)[kept]]
            done += len(infos)
            if progress:
                progress(done, max(total, done))
    if len(rows) < _MIN_WINDOWS:
        raise UserError(f"the {SPLIT} split has {len(rows)} windows with a value, and a map needs {_MIN_WINDOWS}.")
    stacked = np.concatenate(vectors)
    if np.ptp(stacked, axis=0).max() <= _ROUNDING * np.abs(stacked).max():
        raise UserError("all windows have the same embedding: the encoder has collapsed.")
    names, people, labels = zip(*rows, strict=True)
    return EmbeddedWindows(run.step, stacked, names, people, labels)


def tsne_positions(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Positions by t-SNE, started from the two principal components; the same for the same vectors."""
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors))


def draw_maps(embedded: EmbeddedWindows) -> list[tuple[str, Markup]]:
    """A picture with its title for the datasets, the people and each of the labels that most windows have.

    No picture has an id: people are numbered by their windows.
    """
    positions = tsne_positions(embedded.vectors)
    return [(colours.title, _draw_map(positions, colours)) for colours in _colourings(embedded)]


@dataclasses.dataclass(frozen=True)
class _Colours:
    """What windows are coloured by: the number of each window's class, -1 for none; names and hues of the classes."""

    title: str
    classes: Int[np.ndarray, " n"]
    names: Sequence[str]
    hues: Sequence[str] = HUES


def _colourings(embedded: EmbeddedWindows) -> Iterator[_Colours]:
    if len({*embedded.datasets}) > 1:
        yield _by_value("dataset", embedded.datasets)
    people = _by_value("person", list(zip(embedded.datasets, embedded.people, strict=True)))
    yield dataclasses.replace(people, names=[f"person {place}" for place in range(1, len(people.names) + 1)])
    labels = {name: [each.get(name) for each in embedded.labels] for each in embedded.labels for name in each}
    varied = [name for name, values in labels.items() if len({*values} - {None}) > 1]
    for name in sorted(varied, key=lambda name: (labels[name].count(None), name))[:_MAX_LABELS]:
        yield _by_label(readable(name), labels[name])


def _by_value(title: str, values: Sequence[Hashable | None]) -> _Colours:
    """A class for each of the most frequent values."""
    kept: list[Any] = [value for value, _ in Counter(v for v in values if v is not None).most_common(len(HUES))]
    kept = sorted(kept) if all(isinstance(value, float) for value in kept) else kept
    classes = [kept.index(value) if value in kept else -1 for value in values]
    return _Colours(title, np.array(classes), [number(v) if isinstance(v, float) else str(v) for v in kept])


def _by_label(title: str, values: Sequence[float | str | None]) -> _Colours:
    """A class for each value; numbers of many values are four quarters, from low to high."""
    numbers = np.array([np.nan if value is None or isinstance(value, str) else value for value in values], np.float64)
    if any(isinstance(value, str) for value in values) or len(np.unique(numbers[~np.isnan(numbers)])) <= len(HUES):
        return _by_value(title, [float(value) if isinstance(value, int) else value for value in values])
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, len(_QUARTERS) + 1)))
    classes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    names = [f"{number(low)} – {number(high)}" for low, high in itertools.pairwise(edges.tolist())]
    return _Colours(title, np.where(np.isnan(numbers), -1, classes), names, _QUARTERS)


@styled()
def _draw_map(positions: Float[np.ndarray, "n 2"], colours: _Colours) -> Markup:
    figure, axes = new_figure(3.4, 3.3)
    for index, name in [(-1, "other or none"), *enumerate(colours.names)]:
        here = positions[colours.classes == index]
        if len(here):
            colour, marker = (LIGHT[colours.hues[index]], _MARKERS[index]) if index >= 0 else (LIGHT["soft"], ".")
            axes.plot(
                *here.T, marker, color=colour, alpha=1 if index >= 0 else 0.5, markersize=4.5,
                markeredgecolor=LIGHT["paper"], markeredgewidth=0.3, label=_shortened(name),
            )  # fmt: skip
    hide_frame(axes)
    axes.set(xticks=[], yticks=[])
    figure.legend(loc="outside lower center", ncols=2, markerscale=1.3, handletextpad=0.2)
    return inline_svg(figure, f"map of embeddings, coloured by {colours.title}")


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
