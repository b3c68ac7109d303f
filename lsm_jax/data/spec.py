"""What a model knows about its data: channels, normalisation, window length and observed shares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import REGISTRY
from lsm_jax.channels import channel as registered
from lsm_jax.config import DataConfig
from lsm_jax.data.card import Moments
from lsm_jax.data.faults import ReadFaults
from lsm_jax.data.store import Dataset, open_dataset
from lsm_jax.errors import UserError

_MIN_CELLS = 2  # with fewer observed cells, a channel takes the registry's mean and sd


@dataclasses.dataclass(frozen=True, eq=False)
class DataSpec:
    """What objectives know about the data. It is saved in the run folder, with the normalisation.

    Attributes:
      channels: canonical names of the model's C channels, the columns of every batch.
      mean, sd: float32[C]; a batch holds `(value - mean) / sd`.
      window_minutes: T, the length of a batch's windows; a step is one minute.
      observed_share: float32[C], share of observed cells in the training split; 0 for a channel that no dataset has.
    """

    channels: tuple[str, ...]
    mean: Float[np.ndarray, " c"]
    sd: Float[np.ndarray, " c"]
    window_minutes: int
    observed_share: Float[np.ndarray, " c"]

    def save(self, file: Path) -> None:
        """Writes the spec as JSON, which keeps float32 exactly."""
        content = {
            "window_minutes": self.window_minutes,
            "channels": {
                name: {
                    "mean": float(self.mean[column]),
                    "sd": float(self.sd[column]),
                    "observed_share": float(self.observed_share[column]),
                }
                for column, name in enumerate(self.channels)
            },
        }
        file.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, file: Path) -> DataSpec:
        """Reads what `save` wrote; UserError if the file is missing, damaged, or names an unknown channel."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            moments = {name: dict(entry) for name, entry in content["channels"].items()}
            spec = cls(
                channels=tuple(moments),
                mean=_column(moments, "mean"),
                sd=_column(moments, "sd"),
                window_minutes=int(content["window_minutes"]),
                observed_share=_column(moments, "observed_share"),
            )
        except FileNotFoundError:
            raise UserError(f"{file}: no data specification; the run's folder is incomplete.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise UserError(f"{file}: damaged data specification ({type(error).__name__}: {error}).") from None
        if not spec.channels or spec.window_minutes < 1 or not (np.isfinite(spec.mean) & (spec.sd > 0)).all():
            raise UserError(f"{file}: a data specification needs channels, a window length and positive sd.")
        for name in spec.channels:
            registered(name)
        return spec


def data_spec(config: DataConfig, datasets: Sequence[Dataset]) -> DataSpec:
    """The specification of a run's data.

    Moments of several datasets are pooled over all their training cells. A channel without training cells takes the
    registry's mean and sd. The observed share is weighted as the datasets are mixed, so it describes a batch.

    Args:
      config: the section `data`: `weights`, `channels` (empty: all channels of the datasets, in the registry's order),
        `window_minutes`.
      datasets: those at `config.paths`, from `open_datasets`.

    Raises:
      UserError: a channel is unknown, or weights do not fit the datasets.
    """
    present = {name for dataset in datasets for name in dataset.channels}
    channels = tuple(config.channels) or tuple(name for name in REGISTRY if name in present)
    weights = mixture_weights(config, [len(dataset.source("train")) for dataset in datasets])
    pooled = [_pooled(name, datasets) for name in channels]
    return DataSpec(
        channels=channels,
        mean=np.array([mean for mean, _ in pooled], np.float32),
        sd=np.array([sd for _, sd in pooled], np.float32),
        window_minutes=int(config.window_minutes),
        observed_share=np.array([_observed_share(name, datasets, weights) for name in channels], np.float32),
    )


def open_datasets(config: DataConfig) -> list[Dataset]:
    """The datasets at `config.paths`, limited to `config.people_share` of their training people.

    Raises:
      UserError: no path, a share or limit out of range, or a missing or damaged dataset.
    """
    paths = [config.paths] if isinstance(config.paths, str) else list(config.paths)
    if not paths:
        raise UserError("data.paths is empty: name at least one dataset folder, as in --config.data.paths=DIR,DIR.")
    if not 0 < config.people_share <= 1:
        raise UserError(f"data.people_share={config.people_share}: give a share above 0 and at most 1.")
    if config.max_corrupt < 0:
        raise UserError(f"data.max_corrupt={config.max_corrupt}: give a number of records, at least 0.")
    faults = ReadFaults(config.max_corrupt)
    opened = map(open_dataset, paths)
    return [dataclasses.replace(dataset, people_share=config.people_share, faults=faults) for dataset in opened]


def datasets_with_weight(config: DataConfig, datasets: Sequence[Dataset]) -> list[Dataset]:
    """The datasets that windows are sampled from, which is all but those of weight 0."""
    weights = mixture_weights(config, [len(dataset.source("train")) for dataset in datasets])
    return [dataset for dataset, weight in zip(datasets, weights, strict=True) if weight > 0]


def mixture_weights(config: DataConfig, windows: Sequence[int]) -> Float[np.ndarray, " d"]:
    """The share of each dataset among sampled windows: `config.weights`, or if empty its share of all windows.

    Raises:
      UserError: there is not one weight for each path, one is negative, or a dataset without windows has a weight.
    """
    weights = np.array(list(config.weights) or windows, np.float64)
    if len(weights) != len(windows) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise UserError(f"data.weights {list(config.weights)}: give one weight >= 0 for each of {len(windows)} paths.")
    if any(weight > 0 and not count for weight, count in zip(weights, windows, strict=True)):
        raise UserError("data.weights: a dataset without windows in this split cannot have a weight.")
    return weights / weights.sum()


def _pooled(name: str, datasets: Sequence[Dataset]) -> tuple[float, float]:
    """Mean and sd of a channel over the training cells of all datasets, or the registry's."""
    moments = [dataset.normalisation[name] for dataset in datasets if name in dataset.normalisation]
    pooled, kind = sum(moments, Moments.from_sd(0, 0.0, 0.0)), registered(name)
    if pooled.count < _MIN_CELLS:
        return kind.mean, kind.sd
    # The sd of a channel that never changes is 0 or rounding noise, and must not divide anything.
    return float(pooled.mean), float(pooled.sd) if pooled.sd > 1e-6 * kind.sd else kind.sd


def _observed_share(name: str, datasets: Sequence[Dataset], weights: Float[np.ndarray, " d"]) -> float:
    shares = [
        dataset.normalisation[name].count / max(dataset.training_minutes, 1) if name in dataset.normalisation else 0.0
        for dataset in datasets
    ]
    return float(weights @ np.array(shares))


def _column(moments: dict[str, dict[str, float]], key: str) -> Float[np.ndarray, " c"]:
    return np.array([float(entry[key]) for entry in moments.values()], np.float32)
