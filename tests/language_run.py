"""A small dataset with activities in its logs, an untrained sensor-text run on it, and one that knows the answers."""

import dataclasses
import hashlib

import jax
import numpy as np
from tiny_run import CHANNELS, save_run, tiny_config, tiny_windows

from lsm_jax import objectives
from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import with_changes
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.objectives.sensor_language import SensorLanguage
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import TOKENIZER
from lsm_jax.windows import Event

CLASSES = ("running", "stair climbing", "yoga")
PROMPTS = """
templates = ["The wearer did some {activity} between {start} and {end}.", "{activity} was logged."]
times = ["01:00-01:40", "02:00-02:40"]
[classes.running]
[classes."stair climbing"]
[classes.yoga]
prompts = ["The wearer was busy with yoga."]
"""


def logged_windows(people=20, days=3):
    """Days with one, two or three of `CLASSES`; every third person sleeps, too."""
    for number, window in enumerate(tiny_windows(people, days)):
        person, day = divmod(number, days)
        events = [
            Event("activity", name, 40 * position, 40 * position + 30 + person)
            for position, name in enumerate(CLASSES)
            if (person + day + position) % 3 or day == 0
        ]
        yield dataclasses.replace(window, events=(*events, *[Event("sleep", "asleep", 150, 230)] * (person % 3 == 0)))


def language_dataset(folder, **kwargs):
    """The dataset at `folder`, written there."""
    write_dataset(folder, "logged", CHANNELS, logged_windows(**kwargs))
    return open_dataset(folder)


def language_run(folder, objective="coca", levels="semantic", step=7):
    """An untrained run of size tiny on the dataset at `folder`."""
    captioner = Captioner(tuple(levels.split("+")))
    tokenizer = Tokenizer.train([captioner(window).text for window in logged_windows()], 400)
    config = with_changes(
        tiny_config(folder),
        {
            "objective.name": objective, "language.levels": levels, "language.vocab_size": tokenizer.vocabulary,
            "language.text_length": 96, "language.caption_queries": 2, "tokens.patch_channels": 3,
        },
    )  # fmt: skip
    spec = data_spec(config.data, open_datasets(config.data))
    objective = objectives.build(config, spec)
    return Run(config, spec, objective, jax.jit(objective.init)(jax.random.key(0)), step, tokenizer=tokenizer)


def save_language_run(run, workdir):
    """Writes a run as the training loop leaves it."""
    save_run(run, workdir)
    run.tokenizer.save(workdir / TOKENIZER)


class CaptionOracle(SensorLanguage):
    """A stand-in that embeds texts by `vector` and each day as the caption our own captioner gives it."""

    def __init__(self, like, run, source, vector):
        self.__dict__ |= like.__dict__
        self.texts = [Captioner()(source[position]).text for position in range(len(source))]
        self.tokenizer, self.vector = run.tokenizer, vector

    def embed(self, params, batch):
        texts = [self.texts[i] if i < len(self.texts) else "" for i in batch["window_id"]]
        return np.stack([self.vector(text) for text in texts])

    def embed_text(self, params, ids):
        return np.stack([self.vector(text) for text in self.tokenizer.decode(ids)])

    def generate(self, params, batch, vocabulary, decoding=None, seed=0):
        texts = [self.texts[i] if i < len(self.texts) else "" for i in batch["window_id"]]
        return self.tokenizer.encode(texts, 400).ids


def with_oracle(run, source, vector):
    """The run with an objective that knows every caption of a split."""
    return dataclasses.replace(run, objective=CaptionOracle(run.objective, run, source, vector))


def by_classes(text):
    """Which of `CLASSES` a text names, as a vector."""
    return np.array([name in text.lower() for name in CLASSES], np.float32)


def by_letters(text):
    """A direction of its own for every text."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    return vector / np.linalg.norm(vector)
