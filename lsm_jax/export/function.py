"""A run's embeddings as one plain function of windows: what the files of other formats hold.

It differs from `embed` of an objective in layout only: every token of the grid has a slot of its own, and those without
a recording are masked. So its shapes do not depend on the data, and nothing but arithmetic is left to export.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsm_jax import objectives
from lsm_jax.config import with_changes
from lsm_jax.errors import UserError
from lsm_jax.objectives.base import NetworkObjective
from lsm_jax.objectives.imputed import ImputedReconstruction
from lsm_jax.objectives.pooling import POOLINGS, TokenEmbeddings, pool
from lsm_jax.objectives.sensor_language import TEXT_SPACE, SensorLanguage
from lsm_jax.tokens.imputation import impute
from lsm_jax.tokens.rows import dense
from lsm_jax.train.run import Run
from lsm_jax.windows import MINUTES_PER_DAY

TOKENS, OBSERVED = "tokens", "observed"
_WEEK = 7 * MINUTES_PER_DAY
_MAX_BYTES = 2**31  # of a flatbuffer, and of a protocol buffer


def check_fits(run: Run, kind: str) -> None:
    """UserError if the run's parameters are too many for one file of this kind."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.params))
    if size >= _MAX_BYTES:
        raise UserError(
            f"{kind} file holds less than 2 GB, the run's parameters are {size / 2**30:.1f}: choose --format "
            "safetensors."
        )


class EmbeddingFunction:
    """Values of windows to embeddings, in float32, with parameters inside.

    Attributes:
      channels: names of the C columns, in the units of the registry.
      patch_minutes: what the length of windows must be a multiple of.
      window_minutes: the length that the run was trained on.
      max_minutes: the longest length.
      fixed_length: whether windows must have the length of training (LSM-1, which fills their gaps).
      grid: of tokens, for windows of `max_minutes`.
      outputs: names of the outputs.
    """

    def __init__(self, run: Run) -> None:
        spec = run.spec
        self.channels, self.window_minutes = spec.channels, spec.window_minutes
        self.patch_minutes = run.config.tokens.patch_minutes
        self.fixed_length = isinstance(run.objective, ImputedReconstruction)
        self.max_minutes = max(_WEEK // self.patch_minutes * self.patch_minutes, self.window_minutes)
        plain = with_changes(run.config, {"model.dtype": "float32", "model.attention": "reference"})
        objective = objectives.build(plain, dataclasses.replace(spec, window_minutes=self.max_minutes))
        assert isinstance(objective, NetworkObjective)
        self._objective = objective
        self.grid = objective.tokens
        self._params = jax.tree.map(np.asarray, run.params)
        self._mean, self._sd = spec.mean, spec.sd
        compares = isinstance(objective, SensorLanguage) and objective.compares_windows
        self.outputs = (*POOLINGS, *([TEXT_SPACE] if compares else []), TOKENS, OBSERVED)

    def positions(self) -> Float[np.ndarray, "n width"]:
        """The position embeddings of all tokens of windows of `max_minutes`."""
        return np.asarray(self._objective.restored(self._params).encoder.positions.on_grid(self.grid.patches))

    def __call__(self, values: Float[Array, "b t c"]) -> dict[str, Array]:
        """Embeddings of windows.

        Args:
          values: a column per channel; NaN or infinite where nothing was recorded. A step is one minute.

        Returns:
          A vector per window for each pooling (`objectives.pooling`), and `text` in the space shared with texts, if the
          run has it; `tokens` float32[b, n, d], the encoder's output, zeros where there is no token, which `observed`
          bool[b, n] says. Token n is that of patch n // groups and channel group n % groups.
        """
        with jax.default_matmul_precision("highest"):  # accelerators round the factors otherwise
            return self._embed(values)

    def _embed(self, values: Float[Array, "b t c"]) -> dict[str, Array]:
        recorded = jnp.isfinite(values)
        batch = {"values": jnp.where(recorded, (values - self._mean) / self._sd, 0), "observed": recorded}
        if self.fixed_length:
            batch = impute(batch)
        grid = dataclasses.replace(self.grid, window_minutes=values.shape[1])
        cells, network = grid.tokenize(batch), self._objective.restored(self._params)
        observed = grid.tokens_observed(cells.observed)
        encoded = jnp.where(observed[:, :, None], network.encoder.on_grid(cells, observed), 0)
        tokens = TokenEmbeddings(encoded, jnp.arange(encoded.shape[1])[None], observed)
        outputs = {name: pool(tokens, grid, name) for name in POOLINGS}
        if TEXT_SPACE in self.outputs:
            outputs[TEXT_SPACE] = network.sensor_embedding(encoded, dense(observed), values.shape[0])
        return {**outputs, TOKENS: encoded, OBSERVED: observed}
