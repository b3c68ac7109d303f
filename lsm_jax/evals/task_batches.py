"""Windows of whole people, and batches of (window, task) pairs for the model and the baselines."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import REGISTRY
from lsm_jax.data.loader import evaluation_batches
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import WindowSource
from lsm_jax.errors import UserError
from lsm_jax.evals.baselines import CellIndex, time_bins
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.tasks import MARKS, Context, Task, hidden_tokens
from lsm_jax.windows import Window

_WORKOUT_SESSIONS = (("session", "aerobic"), ("session", "anaerobic"))
_HIGH_HEART_RATE = 160  # bpm, OpenMHC's intensity failure


@dataclasses.dataclass(frozen=True)
class WindowStack:
    """Some windows on a model's channels.

    Attributes:
      values: z-scored; 0 where unobserved.
      person: an index per participant.
      identity: a hash of participant and start, which seeds the window's masks.
      marked: minutes of sleep, of workouts, and with a high heart rate, in the order of `tasks.MARKS`.
    """

    values: Float[np.ndarray, "w t c"]
    observed: Bool[np.ndarray, "w t c"]
    start_minute: Int[np.ndarray, " w"]
    weekday: Int[np.ndarray, " w"]
    person: Int[np.ndarray, " w"]
    identity: Int[np.ndarray, " w"]
    marked: Bool[np.ndarray, "w t m"]

    @property
    def bins(self) -> Int[np.ndarray, "w t"]:
        """The local time-of-day bin of every minute."""
        return time_bins(self.start_minute, self.values.shape[1])

    def __getitem__(self, rows: slice) -> WindowStack:
        return WindowStack(**{name: array[rows] for name, array in vars(self).items()})

    def __add__(self, other: WindowStack) -> WindowStack:
        return WindowStack(**{name: np.concatenate([array, vars(other)[name]]) for name, array in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A batch of b pairs.

    Attributes:
      window, task: indices into the stack and the tasks.
      hidden: recorded tokens that the task hides, patches by channel groups.
    """

    window: Int[np.ndarray, " b"]
    task: Int[np.ndarray, " b"]
    hidden: Bool[np.ndarray, "b p g"]


def by_person(source: WindowSource, limit: int | None = None) -> list[int]:
    """Positions of a source's windows in order of participant and start.

    Args:
      limit: at most this many windows, of people taken whole where possible: without a person's other windows, the
        baseline made of them would be weak. Participants are hashes, so the first ones are a random sample.
    """
    names = np.array(source.participants)
    order: list[int] = np.lexsort((source.start_seconds, names)).tolist()
    if limit is None:
        return order
    ends = np.cumsum(np.unique(names, return_counts=True)[1])
    return order[: max(ends[ends <= limit].tolist(), default=limit)]


def person_stacks(
    source: WindowSource,
    spec: DataSpec,
    person_index: Mapping[str, int],
    limit: int | None,
    size: int = 256,
    marks: bool = False,
) -> Iterator[WindowStack]:
    """A source's windows in stacks of whole people, about `size` each, so that memory does not grow with the source.

    Args:
      limit: see `by_person`.
      marks: whether a task needs `WindowStack.marked`, for which windows are decoded in natural units, too.
    """
    starts, pending = source.start_seconds, None
    for batch, infos in evaluation_batches(source, spec, size, order=by_person(source, limit)):
        names = [f"{info.participant} {starts[info.index]} {info.offset}" for info in infos]
        stack = WindowStack(
            **{key: batch[key][: len(infos)] for key in ("values", "observed", "start_minute", "weekday")},
            person=np.array([person_index[info.participant] for info in infos], np.int64),
            identity=np.array([zlib.crc32(name.encode()) for name in names], np.int64),
            marked=np.stack([marked_minutes(info.window if marks else None, spec.window_minutes) for info in infos]),
        )
        pending = stack if pending is None else pending + stack
        # In order of participant, all but the last person are complete.
        complete = int(np.argmax(pending.person == pending.person[-1]))
        if complete:
            yield pending[:complete]
            pending = pending[complete:]
    if pending is not None:
        yield pending


def marked_minutes(window: Window | None, minutes: int) -> Bool[np.ndarray, "t m"]:
    """The minutes of a window's sleep and workouts, by its events, and of a high heart rate; see `tasks.MARKS`.

    None of them without a window.
    """
    marked = np.zeros((minutes, len(MARKS)), bool)
    if window is None:
        return marked
    for event in window.events:
        if event.kind == "sleep":
            marked[event.steps, 0] = True
        elif event.kind == "activity" or (event.kind, event.name) in _WORKOUT_SESSIONS:
            marked[event.steps, 1] = True
    if "heart_rate" in window.channels:
        column = window.channels.index("heart_rate")
        high = window.observed[:, column] & (window.values[:, column] > _HIGH_HEART_RATE)
        marked[: len(high), 2] = high[:minutes]
    return marked


def task_pairs(
    windows: WindowStack,
    tasks: Sequence[Task],
    grid: TokenGrid,
    seed: int,
    batch_size: int,
    mask_channels: int = 0,
) -> Iterator[Pairs]:
    """All pairs of a window and a task that suits it, in batches of at most `batch_size`.

    A batch holds pairs with similar shares of hidden tokens, whatever their task, which pack into rows of few shapes.

    Args:
      mask_channels: channels that are hidden together, so that models with other tokens get the same cells; 0: those of
        the model's tokens.

    Raises:
      UserError: `mask_channels` are no whole tokens.
    """
    if mask_channels < 0 or mask_channels % grid.patch_channels:
        raise UserError(
            f"masks of {mask_channels} channels are not whole tokens: the run has tokens.patch_channels="
            f"{grid.patch_channels}. Give a multiple of it, the same for all runs that you compare."
        )
    mask_grid = dataclasses.replace(grid, patch_channels=mask_channels) if mask_channels else grid
    # A token with any recorded cell, whatever the model's rule for partly recorded patches is.
    recorded, in_masks = (
        each.cells(windows.observed).any(axis=-1).reshape(-1, each.patches, each.groups) for each in (grid, mask_grid)
    )
    contexts = _contexts(windows, mask_grid)
    pairs: list[tuple[float, int, int, np.ndarray]] = []
    for number, task in enumerate(tasks):
        for row, tokens in enumerate(recorded):
            rng = window_rng(seed, task, windows, row)
            together = hidden_tokens(task, in_masks[row], grid.patch_minutes, rng, contexts[row])
            if together is not None:
                hidden = (
                    together.repeat(mask_grid.patch_channels // grid.patch_channels, axis=1)[:, : grid.groups] & tokens
                )
                pairs.append((hidden.sum() / max(tokens.sum(), 1), number, row, hidden))
    pairs.sort(key=lambda pair: pair[:3])
    for first in range(0, len(pairs), batch_size):
        _, task_of, window, masks = zip(*pairs[first : first + batch_size], strict=True)
        yield Pairs(np.array(window), np.array(task_of), np.stack(masks))


def _contexts(windows: WindowStack, grid: TokenGrid) -> list[Context]:
    """What the scenarios need to know of every window."""
    marked = np.any(windows.marked.reshape(-1, grid.patches, grid.patch_minutes, len(MARKS)), axis=2)
    sensors = [
        frozenset(REGISTRY[name].sensor for name in grid.channels[first : first + grid.patch_channels])
        for first in range(0, len(grid.channels), grid.patch_channels)
    ]
    return [Context(dict(zip(MARKS, patches.T, strict=True)), sensors) for patches in marked]


def window_rng(seed: int, task: Task, windows: WindowStack, row: int) -> np.random.Generator:
    """The generator of one window's mask: a function of seed, task and window only."""
    task_hash = zlib.crc32(f"{task.name} {task.setting}".encode())
    return np.random.default_rng([seed, task_hash, int(windows.identity[row])])


def scored_cells(windows: WindowStack, pairs: Pairs, grid: TokenGrid) -> tuple[Bool[np.ndarray, "b t c"], CellIndex]:
    """The cells that stay visible in each pair, and all recorded cells of its hidden tokens, which are scored."""
    observed = windows.observed[pairs.window]
    hidden = pairs.hidden.reshape(len(observed), grid.size, 1)
    hidden_cells = grid.windows(hidden.repeat(grid.cells_per_token, axis=2))
    return observed & ~hidden_cells, CellIndex(*np.nonzero(observed & hidden_cells))


def model_batch(
    windows: WindowStack, pairs: Pairs, visible: Bool[np.ndarray, "b t c"]
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "b n"]]:
    """The batch and the hidden tokens for an objective's `reconstruct`.

    Hidden cells are zero in the batch, so that no mistake in a model can reveal them.
    """
    rows = pairs.window
    batch = {
        "values": np.where(visible, windows.values[rows], 0).astype(np.float32),
        "observed": windows.observed[rows],
        "start_minute": windows.start_minute[rows],
        "weekday": windows.weekday[rows],
        "window_id": (windows.identity[rows] % 2**31).astype(np.int32),
    }
    return batch, pairs.hidden.reshape(len(rows), -1)


def other_days(pairs: Pairs) -> Int[np.ndarray, " b"]:
    """For each row of `model_batch` a row of another window; -1 where the batch has none.

    A batch may have a window several times, with different tasks: the row half a batch on is taken, or the next after
    it of another window.
    """
    count = len(pairs.window)
    rows = np.full(count, -1)
    for row in range(count):
        candidates = (row + max(count // 2, 1) + np.arange(count)) % count
        others = candidates[pairs.window[candidates] != pairs.window[row]]
        rows[row] = others[0] if len(others) else -1
    return rows
