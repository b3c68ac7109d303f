"""Configurations: what is taken, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.config import Config, flatten, from_json, load_config, to_json
from lsm_jax.errors import UserError

_FILE = """
from lsm_jax.config import defaults
VARIANTS = ("small", "large")
def get_config(variant=""):
    config = defaults()
    if variant == "small":
        config.train.batch_size = 4
    return config
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("configs") / "model.py"
    file.write_text(_FILE)
    return file


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("--config.optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.train.batch_size=64", "train.batch_size", 64),
        ("--config.seed=7", "seed", 7),
        ("--config.data.paths=one,two", "data.paths", ("one", "two")),
        ("--config.data.paths=('one',)", "data.paths", ("one",)),
        ("--config.data.paths=", "data.paths", ()),
        ("--config.data.weights=1,0.5", "data.weights", (1.0, 0.5)),
        ("--config.train.duration=30 epochs", "train.duration", "30 epochs"),
        ("--config.optimizer.betas=0.9,0.99", "optimizer.betas", (0.9, 0.99)),
        ("--config.masking.policies=[('random', 0.5, 1.0)]", "masking.policies", (("random", 0.5, 1.0),)),
    ],
)
def test_overrides_are_typed(file: Path, argument: str, key: str, value: object) -> None:
    found = flatten(load_config(str(file), [argument]))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimizer.learning_rat=1", "optimizer.learning_rate"),
        ("--config.train.batchsize=1", "train.batch_size"),
        ("--config.train=1", "there is no key 'train'"),
        ("--config.train.batch_size=4.5", "train.batch_size needs a whole number"),
        ("--config.optimizer.learning_rate=fast", "needs a number, got 'fast'"),
        ("--config.optimizer.learning_rate=nan", "needs a number"),
        ("--config.data.weights=a,b", "data.weights needs a list"),
        ("--config.data.weights=('a',)", "data.weights needs a list"),
        ("--config.masking.policies=random", "masking.policies needs a list"),
        ("--config.seed", "write --config.seed=value"),
    ],
)
def test_refused_overrides_say_what_is_wanted(file: Path, argument: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(str(file), [argument])
    assert words in str(refused.value)


def test_variants(file: Path) -> None:
    assert load_config(f"{file}:small").train.batch_size == 4
    with pytest.raises(UserError, match=r"Did you mean 'small'.* Its variants: small, large"):
        load_config(f"{file}:smal")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(variant=''):\n  return (", ":2"),
        ("import no_such_module", ":1"),
        ("x = 1", "has no function get_config"),
        ("from lsm_jax.config import defaults\ndef get_config(variant=''):\n  c = defaults()\n  c.sead = 1", ":4"),
        (
            "from lsm_jax.config import defaults\ndef get_config(variant=''):\n  c = defaults()\n  c.seed = 'one'",
            ":4",
        ),
        ("def get_config(variant=''):\n  pass", "returned None"),
        ("from ml_collections import ConfigDict\ndef get_config(variant=''):\n  return ConfigDict()", "is missing"),
    ],
)
def test_a_faulty_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        load_config(str(file))


def test_a_missing_file_offers_its_neighbours(file: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean .*model\.py"):
        load_config(str(file.with_name("modle.py")))


def test_json_keeps_everything() -> None:
    assert flatten(from_json(to_json(Config()), "here")) == flatten(Config())


def test_a_run_folder_without_a_later_key_keeps_what_it_was_trained_with() -> None:
    assert from_json("{}", "here").model.rotary is False
    assert from_json('{"model": {"size": "small"}}', "here").model.rotary is False
    assert from_json('{"model": {"rotary": true}}', "here").model.rotary is True
    assert Config().model.rotary is True


@pytest.mark.parametrize("text", ["", "[]", "1", '{"sead": 1}', '{"seed": "one"}', '{"train": 3}', "\x00", "{" * 9000])
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"run/config\.json"):
        from_json(text, "run/config.json")


@given(st.sampled_from(sorted(flatten(Config()))), st.text(max_size=20))
def test_any_text_is_taken_or_refused_in_words(file: Path, key: str, text: str) -> None:
    before = type(flatten(Config())[key])
    try:
        config = load_config(str(file), [f"--config.{key}={text}"])
    except UserError as refused:
        assert key in str(refused)
    else:
        assert type(flatten(config)[key]) is before
