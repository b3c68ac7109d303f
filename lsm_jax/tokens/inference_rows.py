"""Rows for inference: which windows share a row, so that few shapes are compiled and little of a row is padding.

Training packs a fixed number of windows into every row and may leave tokens out. Inference reads every token: windows
are placed by their numbers of tokens, largest first, each into the first row with room for it. All of this happens on
the host, where the numbers are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.tokens.rows import Rows

_ROW_LENGTH = 5120  # slots: short windows fill them well, and attention costs the square of a window's own tokens only
MAX_WINDOWS = 32  # of a row
# Places and slots of a row. A program is compiled for each pair of them, which takes seconds, so there are few.
_WINDOWS = (4, MAX_WINDOWS)
_SHORT_ROW = 640
_RATIO = 4  # windows whose ratio of kinds of tokens is within this factor share rows of one shape


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows of one shape.

    Attributes:
      windows: the window at each place of each row; -1 is none.
      lengths: slots of a row, for each kind of rows (encoder, targets).
    """

    windows: Int[np.ndarray, "r w"]
    lengths: tuple[int, ...]

    def rows_of(self, selected: Bool[np.ndarray, "b n"], kind: int) -> Rows:
        """The rows of the selected tokens, all of which fit."""
        count, places = self.windows.shape
        tokens = selected.shape[1]
        present = (self.windows >= 0)[:, :, None]
        by_row = (selected[self.windows] & present).reshape(count, places * tokens)
        index = np.full((count, self.lengths[kind]), places * tokens, np.int32)
        row, token = np.nonzero(by_row)
        counts = by_row.sum(axis=1)
        index[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = token
        filled = index < places * tokens
        segment = np.where(filled, index // tokens + 1, 0).astype(np.int32)
        return Rows(np.where(filled, index, 0), segment, np.zeros(count, np.int32), places * tokens)  # type: ignore[arg-type]

    def carried(self, tokens: Float[np.ndarray, "b s d"], counts: Int[np.ndarray, " b"]) -> Float[np.ndarray, "r t d"]:
        """Rows of what there is for each selected token (`counts` of a window), in the order of `rows_of` of kind 0."""
        rows = np.zeros((len(self.windows), self.lengths[0], tokens.shape[2]), tokens.dtype)
        for row, windows in zip(rows, self.windows, strict=True):
            end = 0
            for window in windows[windows >= 0]:
                start, end = end, end + int(counts[window])
                row[start:end] = tokens[window, : counts[window]]
        return rows


def packed_rows(
    tokens: Int[np.ndarray, "b k"], limit: int, rows: int, multiple: int, max_windows: int = MAX_WINDOWS
) -> Iterator[PackedRows]:
    """Rows that hold every window once.

    Args:
      tokens: of each window, of each of k kinds of rows.
      limit: tokens of a whole window.
      rows: at most this many rows come together.
      multiple: their number is a multiple of this; rows without a window fill them up.
      max_windows: at most this many windows share a row, which has no more places either.
    """
    for members in _by_ratio(tokens) if len(tokens) else ():
        lengths = _lengths(tokens[members], limit)
        by_places: dict[int, list[list[int]]] = {}
        for row in _first_fit(tokens[members], lengths, max_windows):
            places = min(next(size for size in _WINDOWS if size >= len(row)), max_windows)
            by_places.setdefault(places, []).append([int(members[window]) for window in row])
        for places, of_size in sorted(by_places.items()):
            for first in range(0, len(of_size), rows):
                part = of_size[first : first + rows]
                windows = np.full((_padded(len(part), rows, multiple), places), -1)
                for number, row in enumerate(part):
                    windows[number, : len(row)] = row
                yield PackedRows(windows, lengths)


def _by_ratio(tokens: Int[np.ndarray, "b k"]) -> list[Int[np.ndarray, " m"]]:
    """The windows, together where their kinds of tokens have similar ratios: one would else fill a row first."""
    if tokens.shape[1] == 1:
        return [np.arange(len(tokens))]
    ratio = np.log(np.maximum(tokens[:, 1], 1) / np.maximum(tokens[:, 0], 1)) / np.log(_RATIO)
    classes = np.round(ratio).astype(int)
    return [np.flatnonzero(classes == each) for each in np.unique(classes)]


def _lengths(tokens: Int[np.ndarray, "b k"], limit: int) -> tuple[int, ...]:
    """Slots of a row for each kind: the fullest kind gets whole rows, the others whole or short ones in proportion."""
    total, largest = tokens.sum(axis=0), tokens.max(axis=0)
    room = max(limit, _ROW_LENGTH)
    share = min(room / max(total.max(), 1), 1.0)
    needed = (max(int(share * kind), int(most)) for kind, most in zip(total, largest, strict=True))
    return tuple(_SHORT_ROW if slots <= _SHORT_ROW else room for slots in needed)


def _first_fit(tokens: Int[np.ndarray, "b k"], lengths: Sequence[int], max_windows: int) -> list[list[int]]:
    """Windows by row, the largest placed first, each into the first row that has room for it."""
    free = np.empty((len(tokens), len(lengths)), np.int64)
    rows: list[list[int]] = []
    for window in np.argsort(-(tokens / lengths).max(axis=1), kind="stable").tolist():
        room = (free[: len(rows)] >= tokens[window]).all(axis=1)
        room &= np.array([len(row) < max_windows for row in rows], bool)
        row = int(room.argmax()) if room.any() else len(rows)
        if row == len(rows):
            free[row] = lengths
            rows.append([])
        free[row] -= tokens[window]
        rows[row].append(window)
    return rows


def _padded(rows: int, most: int, multiple: int) -> int:
    """So many rows and no more than `most`, as `multiple` doubled until it holds them."""
    size = multiple
    while size < rows:
        size *= 2
    return min(size, max(most // multiple * multiple, multiple))
