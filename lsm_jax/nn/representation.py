"""How healthy the encoder's representations are: an encoder that maps all days to one vector has collapsed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EPSILON = 1e-9


def representation_health(tokens: Float[Array, "b s d"], is_token: Bool[Array, "b s"]) -> dict[str, Float[Array, ""]]:
    """Spread and similarity of encoded tokens, and of their means over windows.

    Returns:
      token_spread: standard deviation over the tokens of all windows, relative to their root mean square.
      window_spread: the same over the windows' mean tokens.
      window_cosine: mean cosine between the mean tokens of different windows; near 1 where the encoder has collapsed.
      effective_rank: exponential of the entropy of the eigenvalues of the tokens' covariance (Roy and Vetterli, 2007).
    """
    tokens, weight = tokens.astype(jnp.float32), is_token[:, :, None].astype(jnp.float32)
    counts = weight.sum(axis=1)
    exists = counts > 0
    means = (tokens * weight).sum(axis=1) / jnp.maximum(counts, 1)
    overall, total = (tokens * weight).sum(axis=(0, 1)), jnp.maximum(weight.sum(), 1)
    centred = (tokens - overall / total) * weight
    covariance = jnp.einsum("bsd,bse->de", centred, centred) / total
    square = (jnp.square(tokens) * weight).sum() / total + _EPSILON
    return {
        "token_spread": jnp.sqrt(jnp.trace(covariance) / square),
        "window_spread": _spread(means, exists),
        "window_cosine": _mean_cosine(means, exists[:, 0]),
        "effective_rank": _effective_rank(covariance),
    }


def _spread(vectors: Float[Array, "b d"], exists: Bool[Array, "b 1"]) -> Float[Array, ""]:
    count = jnp.maximum(exists.sum(), 1)
    centred = jnp.where(exists, vectors - jnp.where(exists, vectors, 0).sum(axis=0) / count, 0)
    square = jnp.where(exists, jnp.square(vectors), 0).sum() + _EPSILON
    return jnp.sqrt(jnp.square(centred).sum() / square)


def _mean_cosine(vectors: Float[Array, "b d"], exists: Bool[Array, " b"]) -> Float[Array, ""]:
    """The mean over pairs of different vectors, from the length of the sum of all unit vectors."""
    units = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), _EPSILON)
    count = exists.sum()
    together = jnp.square(jnp.where(exists[:, None], units, 0).sum(axis=0)).sum()
    return (together - count) / jnp.maximum(count * (count - 1), 1)


def _effective_rank(covariance: Float[Array, "d d"]) -> Float[Array, ""]:
    values = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0)
    shares = values / (values.sum() + _EPSILON)
    return jnp.exp(-(shares * jnp.log(shares + _EPSILON)).sum())
