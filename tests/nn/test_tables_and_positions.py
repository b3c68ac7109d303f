"""Parameters by canonical channel: the order of a data set's channels means nothing."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsm_jax import channels
from lsm_jax.channels import MINUTELY_26, REGISTRY
from lsm_jax.config import ModelConfig
from lsm_jax.errors import UserError
from lsm_jax.nn.channel_tables import TABLE_ROWS, ChannelTable
from lsm_jax.nn.masked_autoencoder import MaskedAutoencoder
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import language_size, model_size
from lsm_jax.tokens.grid import TokenGrid

POSITIONS = ("learned", "sincos")
CONFIG = ModelConfig(dtype="float32")
SMALLEST = model_size("1x16x2x32+1x16x2x32")


def test_the_registry_fits_the_tables():
    assert len(REGISTRY) <= TABLE_ROWS


def test_a_channel_is_in_the_registry_once():
    """Of two entries of one name the later one would win, in the row of the earlier."""
    named = re.findall(r'\bChannel\(\s*"(\w+)"', inspect.getsource(channels))
    assert named == [*REGISTRY]


@pytest.mark.parametrize("kind", POSITIONS)
def test_positions_follow_the_channel_name_not_its_column(kind):
    first = TokenGrid(("heart_rate", "steps", "glucose"), window_minutes=60)
    second = TokenGrid(("glucose", "heart_rate"), window_minutes=60)
    one, other = (Positions(kind, grid, 16, dtype="float32", rngs=nnx.Rngs(0)) for grid in (first, second))
    patch = np.arange(6)
    np.testing.assert_allclose(one(jnp.asarray(patch * 3)), other(jnp.asarray(patch * 2 + 1)), rtol=1e-6)
    np.testing.assert_allclose(one(jnp.asarray(patch * 3 + 2)), other(jnp.asarray(patch * 2)), rtol=1e-6)


@pytest.mark.parametrize("kind", POSITIONS)
def test_every_token_has_its_own_position(kind):
    grid = TokenGrid(MINUTELY_26, window_minutes=1440)
    vectors = np.asarray(Positions(kind, grid, 64, dtype="float32", rngs=nnx.Rngs(0))(jnp.arange(grid.size)))
    assert len(np.unique(vectors.round(5), axis=0)) == grid.size


@pytest.mark.parametrize(("kind", "width", "divisor"), [("sincos", 30, 4), ("learned", 15, 2)])
def test_a_width_that_position_embeddings_cannot_have_is_refused(kind, width, divisor):
    with pytest.raises(UserError, match=rf"model\.size: a width of {width} is no multiple of {divisor}, which {kind}"):
        Positions(kind, TokenGrid(("steps",), window_minutes=60), width, dtype="float32", rngs=nnx.Rngs(0))


def test_a_group_of_channels_has_the_mean_of_theirs():
    table = ChannelTable(4, nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    single = table(TokenGrid(("heart_rate", "steps"), window_minutes=60))
    pair = table(TokenGrid(("heart_rate", "steps"), window_minutes=60, patch_channels=2))
    np.testing.assert_allclose(pair[0], single.mean(axis=0), rtol=1e-6)


def test_parameters_do_not_depend_on_the_channels_of_a_data_set():
    """So a checkpoint meets a device it has never seen."""
    shapes = [
        jax.tree.map(
            jnp.shape,
            nnx.to_pure_dict(
                nnx.state(
                    nnx.eval_shape(lambda grid=grid: MaskedAutoencoder(grid, SMALLEST, CONFIG, rngs=nnx.Rngs(0))),
                    nnx.Param,
                )
            ),
        )
        for grid in (TokenGrid(MINUTELY_26), TokenGrid(("glucose", "steps")))
    ]
    assert shapes[0] == shapes[1]


def test_base_has_the_papers_size():
    """25M parameters (SPEC section 3), with the paper's plain decoder."""
    config = ModelConfig(decoder="all", num_neighbors=0, patch_input="values", positions="sincos", dtype="float32")
    size = model_size("base")
    model = nnx.eval_shape(lambda: MaskedAutoencoder(TokenGrid(MINUTELY_26), size, config, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 24e6 < count < 26e6


def test_the_context_path_needs_tokens_of_one_channel():
    grid = TokenGrid(MINUTELY_26, patch_channels=2)
    with pytest.raises(UserError, match="num_neighbors"):
        nnx.eval_shape(lambda: MaskedAutoencoder(grid, SMALLEST, CONFIG, rngs=nnx.Rngs(0)))


def test_a_size_is_a_name_or_numbers():
    assert model_size("base") == model_size("12x384x6x1536+4x256x4x1024")
    assert language_size("1x16x2x32+2x16x2x32+3x16x2x32").decoder.depth == 3
    for text in ("bsae", "1x16x2x32", "1x16x2x32+1x16x2", "0x16x2x32+1x16x2x32", ""):
        with pytest.raises(UserError, match=r"model\.size=.*12x384x6x1536|model\.size=.*Known: tiny, small, base"):
            model_size(text)
    with pytest.raises(UserError, match="text tower"):
        language_size("1x16x2x32+1x16x2x32")
    with pytest.raises(UserError, match="multiple"):
        model_size("1x16x3x32+1x16x2x32")
