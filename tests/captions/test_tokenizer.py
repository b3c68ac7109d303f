"""The tokenizer: lossless, single digits, fixed special ids, reproducible, and damaged files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lsm_jax.captions.caption import LEVELS, Captioner
from lsm_jax.captions.tokenizer import BEGIN, END, PAD, SMALLEST_VOCABULARY, SPECIAL, Tokenizer
from lsm_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def texts(random_day) -> list[str]:
    return [Captioner(LEVELS)(random_day(seed)).text for seed in range(12)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, 600)


def test_captions_come_back_as_they_were(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode(texts, 2000)
    assert tokenizer.decode(encoded.ids) == texts
    assert 0 < encoded.lengths.min() <= encoded.lengths.max() <= 2000
    for row, length in zip(encoded.ids, encoded.lengths, strict=True):
        assert row[0] == BEGIN and row[length - 1] == END and (row[length:] == PAD).all()
    went_on = np.concatenate([encoded.ids, encoded.ids], axis=1)  # a model may write on after the end
    assert tokenizer.decode(went_on) == texts
    assert encoded.lengths.max() < max(map(len, texts)) / 2  # it did learn words


@hypothesis.given(st.lists(st.text(), max_size=4))
def test_any_text_comes_back(tokenizer: Tokenizer, some: list[str]) -> None:
    assert tokenizer.decode(tokenizer.encode(some, 5000).ids) == some


@pytest.mark.parametrize("special", SPECIAL)
def test_a_text_cannot_spell_a_special_token(tokenizer: Tokenizer, special: str) -> None:
    encoded = tokenizer.encode([f"calm {special} 7{special}"], 64)
    text = encoded.ids[0, 1 : encoded.lengths[0] - 1]
    assert text.min() >= len(SPECIAL)


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    vocabulary = json.loads(tokenizer.to_bytes())["model"]["vocab"]
    assert not [token for token in vocabulary if sum(letter.isdigit() for letter in token) > 1]
    assert tokenizer.encode(["1234567890"], 64).lengths.tolist() == [12]


def test_what_does_not_fit_is_cut_and_counted(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode([texts[0], "", "Mood at 08:15: calm."], 20)
    assert [(length == 0, length > 20) for length in encoded.lengths] == [(False, True), (True, False), (False, False)]
    assert END not in encoded.ids[0] and PAD not in encoded.ids[0]
    assert (encoded.ids[1] == PAD).all()
    assert texts[0].startswith(tokenizer.decode(encoded.ids)[0])
    assert encoded.lengths[0] == tokenizer.encode(texts[:1], 2000).lengths[0]
    with pytest.raises(UserError, match="rows of 2 tokens"):
        tokenizer.encode(texts, 2)


def test_bytes_carry_the_tokenizer(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "new" / "tokenizer.json")
    assert loaded.to_bytes() == tokenizer.to_bytes()
    assert loaded.vocabulary == tokenizer.vocabulary == 600
    np.testing.assert_array_equal(loaded.encode(texts, 500).ids, tokenizer.encode(texts, 500).ids)


def test_training_again_elsewhere_gives_the_same_bytes(tokenizer: Tokenizer, texts: list[str]) -> None:
    code = (
        "import json, sys; from lsm_jax.captions.tokenizer import Tokenizer;"
        "sys.stdout.buffer.write(Tokenizer.train(json.load(sys.stdin), 600).to_bytes())"
    )
    for _ in range(2):
        finished = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts).encode(), capture_output=True, check=True, cwd=REPOSITORY,
        )  # fmt: skip
        assert finished.stdout == tokenizer.to_bytes()


def test_training_refuses_what_teaches_nothing() -> None:
    with pytest.raises(UserError, match="every window's caption is empty"):
        Tokenizer.train(["", ""], 600)
    with pytest.raises(UserError, match=f"a vocabulary of 100 tokens: give {SMALLEST_VOCABULARY}"):
        Tokenizer.train(["calm"], 100)


def swapped(whole: dict) -> None:
    vocabulary = whole["model"]["vocab"]
    vocabulary["<pad>"], vocabulary["<end>"] = vocabulary["<end>"], vocabulary["<pad>"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (swapped, "special token <pad> has id 2, not 0"),
        (lambda whole: whole["model"]["vocab"].popitem(), "merges do not fit"),
        (lambda whole: whole["model"]["vocab"].update({"xyz": 7}), "ids of its vocabulary are not 0, 1, 2"),
        (lambda whole: whole["model"]["vocab"].update({"xyz": "7"}), "ids of its vocabulary are not 0, 1, 2"),
        (lambda whole: whole["model"]["vocab"].update({"12": 600}), "'12' holds several digits"),
        (lambda whole: whole["model"]["merges"].append(["q", "qq"]), "merges do not fit"),
        (lambda whole: whole["model"]["merges"].append("q q"), "merges do not fit"),
        (lambda whole: whole.update(normalizer={"type": "Lowercase"}), "splits text in another way"),
        (lambda whole: whole.update(pre_tokenizer=None), "splits text in another way"),
        (lambda whole: whole.pop("model"), "not a tokenizer's JSON"),
        (lambda whole: whole.update(model=[1]), "not a tokenizer's JSON"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tokenizer: Tokenizer, damage: Callable[[dict], object], problem: str) -> None:
    whole = json.loads(tokenizer.to_bytes())
    damage(whole)
    with pytest.raises(UserError, match=f"tokens.json: .*{problem}"):
        Tokenizer.from_bytes(json.dumps(whole).encode(), "tokens.json")


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.data())
def test_broken_bytes_are_refused_in_a_sentence(tokenizer: Tokenizer, data: st.DataObject) -> None:
    content = bytearray(tokenizer.to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] = data.draw(st.integers(0, 255))
    try:
        Tokenizer.from_bytes(bytes(content)).encode(["calm at 08:15"], 32)
    except UserError as error:
        assert "Train one with" in str(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.json: cannot be read \(No such file"):
        Tokenizer.load(tmp_path / "nowhere.json")
