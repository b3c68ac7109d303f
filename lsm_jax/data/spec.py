"""What a model may know about its data: channels, normalisation, window length, how much is observed."""

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
from lsm_jax.data.store import Dataset, open_dataset
from lsm_jax.errors import UserError

_FEWEST_CELLS = 2  # moments of fewer cells say nothing; the registry's are used instead


@dataclasses.dataclass(frozen=True, eq=False)
class DataSpec:
    """What objectives may know about the data, saved with the run so that a checkpoint carries its normalisation.

    Attributes:
      channels: canonical names of the model's C channels; every batch is laid out on them.
      mean, sd: float32[C]; a batch holds `(value - mean) / sd`.
      window_minutes: T, the steps of a batch's windows, one minute each.
      observed_share: float32[C]: the training split's share of observed cells, 0 for a channel no dataset has.
    """

    channels: tuple[str, ...]
    mean: Float[np.ndarray, " c"]
    sd: Float[np.ndarray, " c"]
    window_minutes: int
    observed_share: Float[np.ndarray, " c"]

    def save(self, file: Path) -> None:
        """Writes the spec as JSON; float32 survives exactly."""
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
        """Reads what `save` wrote.

        Raises:
          UserError: the file is missing, damaged, or names an unknown channel.
        """
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

    Args:
      config: the section `data`: `weights`, `channels` (empty: all the datasets have, in the registry's order),
        `window_minutes`.
      datasets: those at `config.paths`, from `open_datasets`.

    Moments of several datasets are pooled by their counts; a channel no training window has takes the registry's.
    The observed share follows the mixture, since it says what a batch will look like.

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
    """The datasets at `config.paths`; UserError for no path, or a missing or damaged dataset."""
    paths = [config.paths] if isinstance(config.paths, str) else list(config.paths)
    if not paths:
        raise UserError("data.paths is empty: name at least one dataset folder, as in --config.data.paths=DIR,DIR.")
    return [open_dataset(path) for path in paths]


def datasets_with_weight(config: DataConfig, datasets: Sequence[Dataset]) -> list[Dataset]:
    """The datasets that windows are sampled from: all but those of weight 0."""
    weights = mixture_weights(config, [len(dataset.source("train")) for dataset in datasets])
    return [dataset for dataset, weight in zip(datasets, weights, strict=True) if weight > 0]


def mixture_weights(config: DataConfig, windows: Sequence[int]) -> Float[np.ndarray, " d"]:
    """Each dataset's share of the windows drawn; `config.weights`, or its share of the windows where that is empty.

    Raises:
      UserError: as many weights as paths are needed, none negative, and a dataset without windows has weight 0.
    """
    weights = np.array(list(config.weights) or windows, np.float64)
    if len(weights) != len(windows) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise UserError(f"data.weights {list(config.weights)}: give one weight >= 0 for each of {len(windows)} paths.")
    if any(weight > 0 and not count for weight, count in zip(weights, windows, strict=True)):
        raise UserError("data.weights: a dataset without windows in this split cannot have a weight.")
    return weights / weights.sum()


def _pooled(name: str, datasets: Sequence[Dataset]) -> tuple[float, float]:
    """Mean and sd over the training cells of all datasets, or the registry's."""
    moments = [dataset.normalisation[name] for dataset in datasets if name in dataset.normalisation]
    count = np.array([moment.count for moment in moments], np.float64)
    kind = registered(name)
    if count.sum() < _FEWEST_CELLS:
        return kind.mean, kind.sd
    share = count / count.sum()
    means = np.array([moment.mean for moment in moments])
    mean = float(share @ means)
    sd = float(np.sqrt(share @ (np.array([moment.sd for moment in moments]) ** 2 + (means - mean) ** 2)))
    # A channel that never changed would be divided by zero, or by the noise of rounding.
    return mean, sd if sd > 1e-6 * kind.sd else kind.sd


def _observed_share(name: str, datasets: Sequence[Dataset], weights: Float[np.ndarray, " d"]) -> float:
    shares = [
        dataset.normalisation[name].count / max(dataset.training_minutes, 1) if name in dataset.normalisation else 0.0
        for dataset in datasets
    ]
    return float(weights @ np.array(shares))


def _column(moments: dict[str, dict[str, float]], key: str) -> Float[np.ndarray, " c"]:
    return np.array([float(entry[key]) for entry in moments.values()], np.float32)
