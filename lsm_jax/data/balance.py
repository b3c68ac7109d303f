"""Which windows share a row: windows differ widely in what they recorded, rows of them should not.

A row has as many slots as the compiler was told. Windows taken as they come fill one row far more than the next: slots
stay empty here, tokens are left out there, and of devices that wait for each other at the end of a step the fullest
sets the time. The windows of a batch are therefore dealt to its rows so that rows hold alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Real

from lsm_jax.config import Config

_MOST_ROWS = 4  # balanced with each other: a host's share of a batch is seldom less, and has to be read whole


@dataclasses.dataclass(frozen=True)
class RowBalancer:
    """How a batch is cut into groups, and the windows of each dealt to the rows that the step makes of them.

    Attributes:
      windows_per_row: windows that share a row.
      accumulate: micro-batches of a step. A micro-batch takes every `accumulate`-th window.
      group: windows dealt among each other: whole rows of every micro-batch.
    """

    windows_per_row: int
    accumulate: int
    group: int

    @classmethod
    def from_config(cls, config: Config) -> RowBalancer:
        """How a run deals the windows of its batches."""
        return cls.of(config.train.batch_size, config.rows.windows_per_row, config.train.grad_accum_steps)

    @classmethod
    def of(cls, batch_size: int, windows_per_row: int, accumulate: int) -> RowBalancer:
        """Groups of a global batch, the same for any number of hosts; of single windows where rows hold one."""
        least = windows_per_row * accumulate
        if windows_per_row < 2 or accumulate < 1 or batch_size % least:
            return cls(1, 1, 1)
        most = max(_MOST_ROWS // accumulate, 1)
        blocks = max(count for count in range(1, most + 1) if batch_size // least % count == 0)
        return cls(windows_per_row, accumulate, least * blocks)

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return self.group // self.windows_per_row

    @property
    def window_ids(self) -> Int[np.ndarray, " n"]:
        """A number for each place of a group, one after the other along each of its rows."""
        by_row = np.arange(self.group).reshape(-1, self.accumulate, self.windows_per_row)
        return np.swapaxes(by_row, 1, 2).reshape(-1)

    def order(self, sizes: Real[np.ndarray, "*groups n"]) -> Int[np.ndarray, "*groups n"]:
        """Which window of its group stands at each place, given how much each of them recorded.

        The largest windows go one to a row, then the next largest, the largest of them to the row that holds least. The
        windows of a row come in order of size, so that masks drawn evenly along it fall evenly on large and small ones.
        """
        if self.group == 1:
            return np.zeros(sizes.shape, np.int64)
        falling = np.argsort(-sizes, axis=-1, kind="stable")
        rounds = falling.reshape(*sizes.shape[:-1], self.windows_per_row, self.rows)
        held = np.take_along_axis(sizes, falling, axis=-1).reshape(rounds.shape)
        total = np.zeros((*sizes.shape[:-1], self.rows))
        dealt = np.empty_like(rounds)
        for number in range(self.windows_per_row):
            least_first = np.argsort(total, axis=-1, kind="stable")
            np.put_along_axis(dealt[..., number, :], least_first, rounds[..., number, :], axis=-1)
            received = np.empty_like(total)
            np.put_along_axis(received, least_first, held[..., number, :], axis=-1)
            total += received
        # Place (block, window of the row, micro-batch) holds that window of row (block, micro-batch).
        blocks = dealt.reshape(*sizes.shape[:-1], self.windows_per_row, -1, self.accumulate)
        return np.swapaxes(blocks, -3, -2).reshape(sizes.shape)
