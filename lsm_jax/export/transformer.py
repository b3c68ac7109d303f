"""A scikit-learn transformer of windows to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin

from lsm_jax.errors import UserError
from lsm_jax.export.encoder import Encoder
from lsm_jax.export.recordings import as_array


class EncoderTransformer(TransformerMixin, BaseEstimator):
    """Windows [windows, time, channels] to embeddings [windows, d]; there is nothing to fit.

    A window without a recorded value becomes a row of NaN, for an imputer to follow.
    """

    def __init__(self, encoder: Encoder, *, pooling: str = "", channels: Sequence[str] | None = None) -> None:
        self.encoder, self.pooling, self.channels = encoder, pooling, channels

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002  # scikit-learn's names
        """Learns nothing."""
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """The embedding of each window; UserError for one that is longer than the encoder's."""
        windows = as_array(X)
        if windows.ndim != 3 or windows.shape[1] > self.encoder.window_minutes:
            raise UserError(
                f"an array of shape {windows.shape}: give [windows, time, channels] of at most "
                f"{self.encoder.window_minutes} minutes."
            )
        vectors = self.encoder.embed(windows, channels=self.channels, pooling=self.pooling).vectors
        self._features = vectors.shape[1]
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """`embedding0`, `embedding1`, ..."""
        if not hasattr(self, "_features"):
            self.transform(np.full((1, 1, len(self.channels or self.encoder.channels)), np.nan))
        return np.array([f"embedding{number}" for number in range(self._features)], object)

    def __sklearn_is_fitted__(self) -> bool:
        return True
