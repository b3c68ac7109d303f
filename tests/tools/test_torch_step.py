"""The PyTorch baseline is the same model on the same masks: parameter for parameter, loss for loss."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import OptimizerConfig, load_config
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.tools.bench.step import torch_arrays, torch_model

torch = pytest.importorskip("torch")
torch_step = pytest.importorskip("lsm_jax.tools.bench.torch_step")

PAPER = f"{Path(__file__).resolve().parents[2] / 'configs' / 'lsm2.py'}:paper"
CHANNELS = ("heart_rate", "steps", "skin_temperature", "rmssd")


def paper_objective(channels=CHANNELS, minutes=60, *overrides):
    spec, [batch] = random_batches_with_gaps(channels, minutes, 0.3, batch_size=3, count=1, seed=1)
    config = load_config(PAPER, [f"--config.{override}" for override in overrides])
    return objectives.build(config, spec), batch


def ported(params, model) -> None:
    """Our parameters, put into the PyTorch model."""

    def put(weight, bias, leaves, layer=None):
        kernel, shift = (
            np.array(leaves[name] if layer is None else leaves[name][layer]) for name in ("kernel", "bias")
        )
        weight.data = torch.from_numpy(kernel.reshape(-1, shift.size).T.copy())
        bias.data = torch.from_numpy(shift.reshape(-1))

    def put_norm(norm, leaves, layer=None):
        scale, bias = (np.array(leaves[name] if layer is None else leaves[name][layer]) for name in ("scale", "bias"))
        norm.weight.data, norm.bias.data = torch.from_numpy(scale), torch.from_numpy(bias)

    def put_stack(theirs, ours):
        for layer, block in enumerate(theirs.layers):
            leaves, attention = ours["blocks"], block.self_attn
            put_norm(block.norm1, leaves["attention_norm"], layer)
            put(attention.in_proj_weight, attention.in_proj_bias, leaves["attention"]["query_key_value"], layer)
            put(attention.out_proj.weight, attention.out_proj.bias, leaves["attention"]["output"], layer)
            put_norm(block.norm2, leaves["feed_forward_norm"], layer)
            put(block.linear1.weight, block.linear1.bias, leaves["feed_forward"]["expand"], layer)
            put(block.linear2.weight, block.linear2.bias, leaves["feed_forward"]["contract"], layer)
        put_norm(theirs.norm, ours["norm"])

    put(model.patches.weight, model.patches.bias, params["encoder"]["patches"]["projection"])
    put_stack(model.encoder, params["encoder"]["stack"])
    put(model.decoder_embed.weight, model.decoder_embed.bias, params["decoder"]["decoder_embed"])
    model.mask_token.data = torch.from_numpy(np.array(params["decoder"]["mask_token"]))
    put_stack(model.decoder, params["decoder"]["stack"])
    put(model.head.weight, model.head.bias, params["decoder"]["head"])


def noisy(params):
    """Biases, norms and the head away from zero and one, so that each of them shows."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def test_the_paper_s_base_has_as_many_parameters() -> None:
    objective, _ = paper_objective(MINUTELY_26, 1440)
    ours = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(objective.init, jax.random.key(0))))
    with torch.device("meta"):
        theirs = sum(leaf.numel() for leaf in torch_step.Autoencoder(**torch_model(objective)).parameters())
    assert ours == theirs


def test_the_loss_is_ours_under_the_same_masks() -> None:
    objective, batch = paper_objective(CHANNELS, 60, "model.size=2x16x2x32+1x24x3x32", "rows.decoder_length=24")
    params = noisy(jax.jit(objective.init)(jax.random.key(0)))
    model = torch_step.Autoencoder(**torch_model(objective))
    ported(params, model)
    loss = jax.jit(objective.loss)
    for seed in range(3):
        rng = jax.random.key(seed)
        ours, metrics = loss(params, batch, rng)
        arrays = torch_arrays(objective, batch, objective.hidden(batch, rng))
        assert arrays["target_cells"].sum() == metrics["loss_weight"] > 0
        assert arrays["visible"].sum() == metrics["tokens_visible"] > 0
        theirs = (
            torch_step.squared_errors(model, torch_step.on_device(arrays, "cpu")).item() / arrays["target_cells"].sum()
        )
        np.testing.assert_allclose(theirs, float(ours), rtol=2e-5)


def test_a_batch_taken_in_parts_is_one_batch() -> None:
    objective, batch = paper_objective(CHANNELS, 60, "model.size=2x16x2x32+1x24x3x32")
    arrays = torch_arrays(objective, batch, objective.hidden(batch, jax.random.key(0)))
    tensors = torch_step.on_device(arrays, "cpu")
    assert len(arrays["visible"]) == 3  # a part of two windows, and one of one
    model = torch_step.Autoencoder(**torch_model(objective))
    still = OptimizerConfig(learning_rate=0.0, weight_decay=0.0, clip_norm=0.0)
    loss = torch_step.Step(model, still, "float32")(tensors)
    in_parts = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    whole = torch_step.squared_errors(model, tensors) / int(arrays["target_cells"].sum())
    whole.backward()
    np.testing.assert_allclose(loss, whole.item(), rtol=1e-6)
    for ours, parameter in zip(in_parts, model.parameters(), strict=True):
        np.testing.assert_allclose(ours, parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_learn_a_batch(dtype: str) -> None:
    objective, batch = paper_objective(CHANNELS, 60, "model.size=2x16x2x32+1x24x3x32")
    arrays = torch_arrays(objective, batch, objective.hidden(batch, jax.random.key(0)))
    tensors = torch_step.on_device(arrays, "cpu")
    torch.manual_seed(0)
    optimizer = OptimizerConfig(learning_rate=3e-3, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.05, clip_norm=1.0)
    step = torch_step.Step(torch_step.Autoencoder(**torch_model(objective)), optimizer, dtype)
    losses = [step(tensors) for _ in range(12)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
