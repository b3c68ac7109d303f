"""Assigns the windows of a batch to rows so that all rows hold about the same number of recorded cells.

Windows differ widely in how much they recorded, but every row has the same fixed number of slots. Rows of consecutive
windows would leave slots empty in one row and drop tokens in the next, and the fullest row sets the time of a step on
all devices. The assignment is greedy bin packing, largest window first.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Real

from lsm_jax.config import Config

_MAX_ROWS = 4  # per group; a host must read every group that lies partly in its share of the batch


@dataclasses.dataclass(frozen=True)
class RowBalancer:
    """Cuts a batch into groups of consecutive windows and permutes each group so that its rows are balanced.

    Attributes:
      windows_per_row: windows packed into one row.
      grad_accum_steps: micro-batches of a step. Micro-batch `i` takes windows i, i + grad_accum_steps, ...
      group_size: windows of a group. A group holds whole rows of every micro-batch; 1 switches balancing off.
    """

    windows_per_row: int
    grad_accum_steps: int
    group_size: int

    @classmethod
    def from_config(cls, config: Config) -> RowBalancer:
        """The balancer of a run's training batches."""
        return cls.for_batch(config.train.batch_size, config.rows.windows_per_row, config.train.grad_accum_steps)

    @classmethod
    def for_batch(cls, batch_size: int, windows_per_row: int, grad_accum_steps: int) -> RowBalancer:
        """The balancer for a global batch. It does not depend on the number of hosts.

        It leaves the batch as it is where a row holds one window, or where the batch does not divide into rows.
        """
        smallest = windows_per_row * grad_accum_steps
        if windows_per_row < 2 or grad_accum_steps < 1 or batch_size % smallest:
            return cls(1, 1, 1)
        limit = max(_MAX_ROWS // grad_accum_steps, 1)
        factor = max(count for count in range(1, limit + 1) if batch_size // smallest % count == 0)
        return cls(windows_per_row, grad_accum_steps, smallest * factor)

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return self.group_size // self.windows_per_row

    @property
    def window_ids(self) -> Int[np.ndarray, " n"]:
        """The id, 0 to n - 1, of the window at each index of a group; ids are consecutive along each row."""
        by_row = np.arange(self.group_size).reshape(-1, self.grad_accum_steps, self.windows_per_row)
        return np.swapaxes(by_row, 1, 2).reshape(-1)

    def assign(self, sizes: Real[np.ndarray, "*groups n"]) -> Int[np.ndarray, "*groups n"]:
        """The permutation of each group: which of its windows comes at each index, given the windows' sizes.

        The largest windows go one to each row. Then the next largest follow, the largest of them to the row that holds
        least so far, and so on. The windows of a row are in order of falling size, so that masks spread evenly along
        the row cover large and small windows equally.
        """
        if self.group_size == 1:
            return np.zeros(sizes.shape, np.int64)
        largest_first = np.argsort(-sizes, axis=-1, kind="stable")
        rounds = largest_first.reshape(*sizes.shape[:-1], self.windows_per_row, self.rows)
        round_sizes = np.take_along_axis(sizes, largest_first, axis=-1).reshape(rounds.shape)
        row_total = np.zeros((*sizes.shape[:-1], self.rows))
        assigned = np.empty_like(rounds)
        for number in range(self.windows_per_row):
            emptiest_first = np.argsort(row_total, axis=-1, kind="stable")
            np.put_along_axis(assigned[..., number, :], emptiest_first, rounds[..., number, :], axis=-1)
            added = np.empty_like(row_total)
            np.put_along_axis(added, emptiest_first, round_sizes[..., number, :], axis=-1)
            row_total += added
        # The axes are (window of the row, block, micro-batch); a batch is laid out as (block, window, micro-batch).
        blocks = assigned.reshape(*sizes.shape[:-1], self.windows_per_row, -1, self.grad_accum_steps)
        return np.swapaxes(blocks, -3, -2).reshape(sizes.shape)
