"""Probes that train a network on labels: from random parameters, from the pre-trained ones, or a head on frozen tokens.

The head is attention pooling over the tokens of a window, event or span, which begins as their mean, and one linear
layer. Training stops where the loss of the tuning people was lowest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lsm_jax.evals.probe_features import by_example
from lsm_jax.evals.probe_fit import Fold, Part, Scores, loss_of
from lsm_jax.evals.probe_tasks import Task
from lsm_jax.nn.supervised import span_outputs
from lsm_jax.objectives.base import Batch, NetworkObjective

_WINDOWS, _SPANS = 16, 32  # of a step
_STEPS, _CHECKS = 240, 8
_LEARNING_RATE = {True: 1e-2, False: 1e-3}  # of a head on frozen tokens, of a whole network

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkProbe:
    """Trains on one dataset, whose windows are held in memory.

    Attributes:
      windows: all windows as one batch.
      init: parameters to start from.
      frozen: whether the encoder stays as it is.
    """

    objective: NetworkObjective
    windows: Mapping[str, np.ndarray]
    init: Params
    frozen: bool
    seed: int

    def scores(self, task: Task, fold: Fold) -> Scores:
        """The scores of the test examples."""
        train = task.target[fold.train]
        mean, sd = (0.0, 1.0) if task.classes else (train.mean(), train.std() or 1.0)
        count = np.bincount(train.astype(int), minlength=len(task.classes)) if task.classes else np.ones(1)
        weight = np.where(count > 0, count.sum() / np.maximum(count, 1) / (count > 0).sum(), 0).astype(np.float32)
        learnt = {"head": self._head(len(task.classes) or 1)} | ({} if self.frozen else {"encoder": self.init})
        state, best, lowest = self._optimizer.init(learnt), learnt, np.inf
        rng = np.random.default_rng(self.seed)
        for step in range(_STEPS):
            batch, spans, targets = self._step_batch(task, fold.train, (task.target - mean) / sd, rng)
            length = self.objective.embed_length(batch)
            learnt, state = self._step(length, learnt, state, batch, spans, targets, weight)
            if (step + 1) % (_STEPS // _CHECKS) == 0:
                predicted = self._predict(task, fold.tune, learnt)
                loss = loss_of(predicted if task.classes else predicted * sd + mean, task, fold.tune)
                if loss < lowest or not len(fold.tune):
                    best, lowest = learnt, loss
        predicted = self._predict(task, fold.test, best)
        return predicted if task.classes else predicted * sd + mean

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(_LEARNING_RATE[self.frozen], _STEPS)
        return optax.adamw(rate, weight_decay=0.01)

    def _head(self, outputs: int) -> dict[str, Float[Array, "*d"]]:
        batch = {name: part[:1] for name, part in self.windows.items()}
        shape = jax.eval_shape(functools.partial(self.objective.encode_tokens, 8), self.init, batch).vectors.shape
        return {"query": jnp.zeros(shape[-1]), "kernel": jnp.zeros((shape[-1], outputs)), "bias": jnp.zeros(outputs)}

    def _step_batch(
        self, task: Task, part: Part, target: Float[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Batch, Int[np.ndarray, "w s 2"], Float[np.ndarray, "w s"]]:
        """Random windows of training examples with at most `_SPANS` of their spans; an empty span is padding."""
        rows = np.flatnonzero(np.isin(task.example, part))
        numbers = rng.choice(np.unique(task.spans[rows, 0]), _WINDOWS)
        spans, targets = np.zeros((_WINDOWS, _SPANS, 2), np.int32), np.zeros((_WINDOWS, _SPANS), np.float32)
        for place, number in enumerate(numbers):
            own = rng.permutation(rows[task.spans[rows, 0] == number])[:_SPANS]
            spans[place, : len(own)] = task.spans[own, 1:]
            targets[place, : len(own)] = target[task.example[own]]
        return self._batch(task, numbers), spans, targets

    def _batch(self, task: Task, numbers: Int[np.ndarray, " w"]) -> Batch:
        batch = {name: part[numbers] for name, part in self.windows.items()}
        columns = [column for column, name in enumerate(self.objective.tokens.channels) if name in task.hidden]
        batch["observed"][:, :, columns] = False
        return jax.tree.map(jnp.asarray, batch)

    def _predict(self, task: Task, part: Part, learnt: Params) -> Scores:
        """Outputs averaged over the spans of each example: probabilities, or standardised numbers."""
        rows = np.flatnonzero(np.isin(task.example, part))
        outputs = np.zeros((len(task.example), len(task.classes) or 1))
        for numbers, own in _chunks(task, rows):
            batch = self._batch(task, np.resize(numbers, _WINDOWS))
            spans = np.zeros((_WINDOWS, max(len(each) for each in own), 2), np.int32)
            for place, each in enumerate(own):
                spans[place, : len(each)] = task.spans[each, 1:]
            spans = np.pad(spans, ((0, 0), (0, -spans.shape[1] % _SPANS), (0, 0)))  # few shapes to compile
            found = np.asarray(self._outputs(self.objective.embed_length(batch), learnt, batch, spans))
            for place, each in enumerate(own):
                outputs[each] = found[place, : len(each)]
        return by_example(outputs[rows], np.searchsorted(part, task.example[rows]), len(part))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _outputs(self, length: int, learnt: Params, batch: Any, spans: Int[Array, "w s 2"]) -> Float[Array, "w s k"]:
        logits = self._logits(length, learnt, batch, spans)
        return jax.nn.softmax(logits) if logits.shape[-1] > 1 else logits

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _step(
        self,
        length: int,
        learnt: Params,
        state: Any,
        batch: Any,
        spans: Int[Array, "w s 2"],
        targets: Float[Array, "w s"],
        weight: Float[Array, " k"],
    ) -> tuple[Params, Any]:
        def loss(learnt: Params) -> Float[Array, ""]:
            logits, real = self._logits(length, learnt, batch, spans), spans[:, :, 1] > 0
            if logits.shape[-1] > 1:
                number = targets.astype(jnp.int32)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, number) * jnp.asarray(weight)[number]
            else:
                losses = jnp.square(logits[:, :, 0] - targets)
            return jnp.where(real, losses, 0).sum() / jnp.maximum(real.sum(), 1)

        updates, state = self._optimizer.update(jax.grad(loss)(learnt), state, learnt)
        return optax.apply_updates(learnt, updates), state

    def _logits(self, length: int, learnt: Params, batch: Any, spans: Int[Array, "w s 2"]) -> Float[Array, "w s k"]:
        grid, head = self.objective.tokens, learnt["head"]
        tokens = self.objective.encode_tokens(length, learnt.get("encoder", self.init), batch)
        vectors = jnp.where(tokens.real[:, :, None], tokens.vectors, 0)
        minute = (tokens.token // grid.groups * grid.patch_minutes)[:, None]
        inside = (minute < spans[:, :, 1:]) & (minute + grid.patch_minutes > spans[:, :, :1]) & tokens.real[:, None]
        return span_outputs(head["query"], head["kernel"], head["bias"], vectors, inside)


def _chunks(task: Task, rows: Part) -> Iterator[tuple[Int[np.ndarray, " w"], list[Part]]]:
    """The windows of some spans, `_WINDOWS` at a time, with the spans of each."""
    numbers = np.unique(task.spans[rows, 0])
    for first in range(0, len(numbers), _WINDOWS):
        chosen = numbers[first : first + _WINDOWS]
        yield chosen, [rows[task.spans[rows, 0] == number] for number in chosen]
