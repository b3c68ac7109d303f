"""Batches on the devices: for training from a data position on, and for validation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from lsm_jax.config import Config
from lsm_jax.data.loader import Loader
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset
from lsm_jax.data.targets import Targets
from lsm_jax.data.text import CaptionTokens
from lsm_jax.train.mesh import loader_share, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program


class DeviceBatches:
    """Training batches from a data position on, and the validation batches, which are always the same.

    Args:
      position: training batches taken before.
    """

    def __init__(
        self,
        config: Config,
        datasets: Sequence[Dataset],
        spec: DataSpec,
        program: Program,
        schedule: TrainSchedule,
        captions: CaptionTokens | None,
        position: int,
    ) -> None:
        self._mesh, self._size = program.mesh, config.train.batch_size
        index, count = loader_share(self._mesh, self._size)
        load = functools.partial(
            Loader, config.data, datasets, spec, seed=config.seed, batch_size=self._size,
            process_index=index, process_count=count, targets=Targets.from_config(config),
            person_pairs=config.objective.person_weight > 0,
        )  # fmt: skip
        self._training = load("train", position=position, captions=captions, balance=RowBalancer.from_config(config))
        # Validation takes whole days, those with held-out activities too, and never accumulates.
        whole = dataclasses.replace(captions, event_crop_prob=0.0, held_out_activities=()) if captions else None
        balance = RowBalancer.for_batch(self._size, config.rows.windows_per_row, grad_accum_steps=1)
        self._load_validation = functools.partial(load, "validation", captions=whole, balance=balance)
        self._validation_batches = schedule.validation_batches

    @property
    def position(self) -> int:
        """Training batches taken so far: the loader's whole state."""
        return self._training.position

    def next_training(self) -> tuple[Mapping[str, jax.Array], Mapping[str, np.ndarray]]:
        """The next training batch on the devices, and this process's rows of it on the host."""
        rows = next(self._training)
        return to_devices(self._mesh, rows, self._size), rows

    def validation(self) -> Iterator[Mapping[str, jax.Array]]:
        """The first batches of the validation split."""
        with contextlib.closing(self._load_validation()) as loader:
            for _ in range(self._validation_batches):
                yield to_devices(self._mesh, next(loader), self._size)

    def close(self) -> None:
        """Stops reading ahead."""
        self._training.close()
