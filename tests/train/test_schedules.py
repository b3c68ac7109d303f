"""Durations, learning rates, and which parameters an optimizer treats how."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.config import Config, OptimizerConfig, with_changes
from lsm_jax.errors import UserError
from lsm_jax.train.optimizer import kernel_mask, make_learning_rate, make_optimizer
from lsm_jax.train.schedule import SaveTimer, TrainSchedule, seconds

_SCHEDULE = TrainSchedule(batch_size=10, epoch=1000, total=200)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("20 steps", 20), ("1 step", 1), ("2 epochs", 200), ("1e3 examples", 100), ("50 percent", 100), ("10%", 20),
     ("0 steps", 0), ("0.001 epochs", 1), ("1 example", 1), ("33 percent", 66), ("1_000 steps", 1000)],
)  # fmt: skip
def test_durations(text: str, steps: int) -> None:
    assert _SCHEDULE.steps("key", text) == steps


@pytest.mark.parametrize("text", ["", "5", "steps", "5 stps", "-1 steps", "5 percent of it", "1.2.3 steps", "1__ %"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.duration"):
        _SCHEDULE.steps("train.duration", text)


def test_times() -> None:
    assert [seconds(text) for text in ("90 seconds", "10 minutes", "1.5 hours", "0 minutes")] == [90, 600, 5400, 0]
    assert [seconds(text) for text in ("10", "5 steps", "1 week", "-1 minutes")] == [None] * 4
    with pytest.raises(UserError, match=r"checkpoint\.every='5 mintes'.*minutes"):
        _SCHEDULE.steps("checkpoint.every", "5 mintes")


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=300), st.floats(5, 100))
def test_saves_by_time_are_close_to_their_time_at_any_speed(durations: list[float], every: float) -> None:
    """A save is never early, and late by less than the steps between two looks."""
    now, saved_at = 0.0, 0.0
    timer, since = SaveTimer(every, lambda number: number, lambda: now), 0
    for duration in durations:
        now += duration
        since += 1
        if timer.due():
            assert now - saved_at >= every
            timer.restart()
            saved_at, since = now, 0
        assert now - saved_at <= every + max(durations) * (since // 2 + 1)
    assert not SaveTimer(0.0, lambda number: number).due()


def test_processes_save_at_the_same_steps_whatever_their_clocks() -> None:
    """The second process follows what the first one says."""
    said: list[int] = []
    lead = SaveTimer(10.0, lambda number: said.append(number) or number, iter(range(0, 4000, 3)).__next__)
    other = SaveTimer(10.0, lambda _: said.pop(0), lambda: 0.0)
    for _ in range(100):
        answers = lead.due(), other.due()
        assert answers[0] == answers[1]
        if answers[0]:
            lead.restart()
            other.restart()


def test_percent_needs_a_whole() -> None:
    with pytest.raises(UserError, match="steps, epochs, examples"):
        TrainSchedule(10, 1000).steps("train.duration", "5 percent")


@given(st.text(alphabet="0123456789._e% stepochxam", max_size=14))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert _SCHEDULE.steps("key", text) >= 0
    except UserError as refused:
        assert "key" in str(refused)


def rates(steps: list[int], **changes: object) -> list[float]:
    config = OptimizerConfig(**{"learning_rate": 2.0, "warmup": "20 steps", **changes})
    return [float(make_learning_rate(config, _SCHEDULE)(jnp.int32(step))) for step in steps]


def test_learning_rates() -> None:
    assert rates([0, 9, 19, 20, 110, 200], schedule="cosine") == pytest.approx([0.1, 1.0, 2.0, 2.0, 1.0, 0.0], abs=1e-6)
    assert rates([110, 200], schedule="cosine", final_lr_fraction=0.5) == pytest.approx([1.5, 1.0])
    assert rates([20, 110, 200], schedule="linear") == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)
    constant = rates([100, 160, 180, 190, 199], schedule="constant", cooldown="20 percent")
    assert constant == pytest.approx([2.0, 2.0, 1.0, 0.5, 0.05])
    assert rates([20, 50], schedule="rsqrt", rsqrt_timescale="10 steps") == pytest.approx([2.0, 1.0])
    assert rates([0], warmup="0 steps") == pytest.approx([2.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"schedule": "cosin"}, "Did you mean 'cosine'"), ({"warmup": "60 %", "cooldown": "50 %"}, "take 220 of 200"),
     ({"name": "adam"}, "Did you mean 'adamw'")],
)  # fmt: skip
def test_refused_optimizers(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        config = with_changes(Config(), {f"optimizer.{key}": value for key, value in changes.items()}).optimizer
        make_optimizer(config, make_learning_rate(config, _SCHEDULE))


def parameters() -> dict[str, object]:
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    random = np.random.default_rng(0)
    attention = {
        "query_key_value": {"kernel": normal(2, 12, 3, 2, 4), "bias": jnp.ones((2, 3, 2, 4))},
        "output": {"kernel": normal(2, 2, 4, 12), "bias": jnp.ones((2, 12))},
    }
    return {
        "encoder": {"blocks": {"attention": attention, "attention_norm": {"scale": jnp.ones((2, 12))}}},
        "head": {"kernel": normal(12, 10)},
        "mask_token": normal(12),
    }


def test_only_kernels_are_decayed() -> None:
    paths = jax.tree_util.tree_leaves_with_path(kernel_mask(parameters()))
    decayed = {jax.tree_util.keystr(path) for path, chosen in paths if chosen}
    assert all(path.endswith("['kernel']") for path in decayed)
    assert len(decayed) == 3


def update(config: OptimizerConfig, params: object, gradient: object) -> object:
    optimizer = make_optimizer(config, lambda _: jnp.float32(0.1))
    updates, _ = jax.jit(optimizer.update)(gradient, jax.jit(optimizer.init)(params), params)
    return updates


def test_decay_moves_kernels_alone() -> None:
    params = parameters()
    updates = update(OptimizerConfig(weight_decay=0.5), params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05 * params["head"]["kernel"], rtol=1e-6)
    assert not updates["mask_token"].any()
    assert not updates["encoder"]["blocks"]["attention"]["output"]["bias"].any()


def test_adamw_is_optax_adamw_on_the_clipped_gradient() -> None:
    params = parameters()
    config = OptimizerConfig(weight_decay=0.0, clip_norm=0.1)
    norm = optax.tree.norm(params)
    plain = optax.adamw(0.1, *config.betas, config.epsilon, weight_decay=0.0)
    expected, _ = plain.update(jax.tree.map(lambda leaf: leaf * 0.1 / norm, params), plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), update(config, params, params), expected)


def test_muon_orthogonalises_every_matrix_of_a_stack_by_itself() -> None:
    params = parameters()
    updates = update(OptimizerConfig("muon", weight_decay=0.0), params, params)
    fused = updates["encoder"]["blocks"]["attention"]["query_key_value"]["kernel"]
    for layer in range(2):
        for part in range(3):
            values = np.linalg.svd(np.asarray(fused[layer, :, part]).reshape(12, 8), compute_uv=False)
            assert values.max() / values.min() < 2.0  # Newton-Schulz brings singular values near each other
            given_ = np.asarray(params["encoder"]["blocks"]["attention"]["query_key_value"]["kernel"])[layer, :, part]
            before = np.linalg.svd(given_.reshape(12, 8), compute_uv=False)
            assert before.max() / before.min() > 2.0
