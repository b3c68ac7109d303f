"""Classes of days: logistic-regression probes, and the AUROC of each class against the rest.

A day may show several activities, so every class is scored by itself. `Days.labels` says which days count.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lsm_jax.captions.grammar import event_name
from lsm_jax.data.store import Dataset
from lsm_jax.data.targets import MARK
from lsm_jax.evals.days import Days, read_days
from lsm_jax.evals.probe_fit import TUNING_FOLDS
from lsm_jax.evals.result import Row
from lsm_jax.evals.statistics import auroc, bootstrap, score_and_interval
from lsm_jax.evals.suite import Suite
from lsm_jax.train.run import Run

_INVERSE_REGULARISATION = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, for features of unit variance


def logged_classes(dataset: Dataset) -> list[str]:
    """The activities and sessions that a dataset's logs name, by its card, as captions name them."""
    events = dataset.card.get("events", {})
    return sorted({event_name(name) for kind in ("activity", "session") for name in events.get(kind, {})} - {MARK})


def read_labelled_days(run: Run, dataset: Dataset, suite: Suite) -> tuple[Days, Days]:
    """All days that probes learn from, and those that their regularisation is chosen by.

    The latter are of the validation people, or of a fifth of the training people where validation people are scored.
    A single training person is both.
    """

    def days(split: str) -> Days:
        return read_days(run, dataset.nonempty_source(split), suite.without_limit, statistics=True)

    train = days("train")
    if suite.split != "validation":
        return train, days("validation")
    people = np.random.default_rng(suite.seed).permutation(np.unique(train.person))
    if len(people) < 2:
        return train, train
    tuning = np.isin(train.person, people[: max(len(people) // TUNING_FOLDS, 1)])
    return train.only(~tuning), train.only(tuning)


def reference_probes(
    train: Days, tuning: Days, test: Days, classes: Sequence[str]
) -> dict[str, Float[np.ndarray, "m c"]]:
    """Scores of probes with all labels: on the run's embeddings (the upper reference) and on day statistics (no model).

    Each takes the regularisation with the best mean AUROC on the tuning days.
    """
    labels, tuning_labels = train.labels(classes), tuning.labels(classes)

    def scores(train: np.ndarray, tuning: np.ndarray, test: np.ndarray) -> np.ndarray:
        train, tuning, test = standardised(train, tuning, test)
        quality = lambda c: _mean_auroc(fit_probes(train, labels, tuning, c), tuning_labels)  # noqa: E731
        return fit_probes(train, labels, test, max(_INVERSE_REGULARISATION, key=quality))

    return {
        "linear_probe": scores(train.embeddings, tuning.embeddings, test.embeddings),
        "statistics_probe": scores(train.statistics, tuning.statistics, test.statistics),
    }


def fit_probes(
    train: Float[np.ndarray, "n f"], labels: Float[np.ndarray, "n c"], test: Float[np.ndarray, "m f"], c: float
) -> Float[np.ndarray, "m c"]:
    """Log odds of every class; 0 for a class whose training labels are all the same.

    Args:
      labels: 1, 0, or NaN for days that do not count.
      c: inverse strength of regularisation.
    """
    scores = np.zeros((len(test), labels.shape[1]))
    for column, label in enumerate(labels.T):
        counts = ~np.isnan(label)
        if len({*label[counts].tolist()}) == 2:
            probe = LogisticRegression(C=c, max_iter=1000).fit(train[counts], label[counts])
            scores[:, column] = probe.decision_function(test)
    return scores


def standardised(
    train: Float[np.ndarray, "n f"], *others: Float[np.ndarray, "m f"]
) -> Sequence[Float[np.ndarray, "m f"]]:
    """Features with the training days' mean 0 and variance 1; missing ones are 0."""
    scaler = StandardScaler().fit(train)
    return [np.nan_to_num(scaler.transform(part), nan=0.0) for part in (train, *others)]


def auroc_rows(
    scores: Mapping[str, Float[np.ndarray, "*d n c"]],
    days: Days,
    classes: Sequence[str],
    seed: int,
    unseen: Sequence[str] = (),
) -> tuple[list[Row], list[str]]:
    """A row per method and class and one for their mean, `macro`; and a note for each class that cannot be scored.

    Args:
      scores: by method; of shape [draws, n, c] the mean AUROC over draws is taken. `class_prior`, a constant, is added.
      unseen: classes that were kept from training; their mean has a row `macro unseen`.
    """
    labels, rows, notes = days.labels(classes), [], []
    persons, everyone = days.person, len({*days.participants})
    for method, values in {**scores, "class_prior": np.zeros_like(labels)}.items():
        by_class: dict[str, np.ndarray] = {}
        for column, name in enumerate(classes):
            counts = ~np.isnan(labels[:, column])
            positive, person = labels[counts, column] > 0, persons[counts]
            if positive.all() or not positive.any():
                reason = f"no day of the split {'without' if positive.all() else 'shows'} it"
                notes.append(f"{name} is left out: {reason}.")
                continue
            of_class = values.reshape(-1, *labels.shape)[:, counts, column]
            statistic = functools.partial(_auroc_over_draws, of_class, positive)
            by_class[name] = bootstrap(statistic, person, seed, everyone)
            size = {"windows": int(counts.sum()), "positives": int(positive.sum())}
            people = len({*person[positive].tolist()})
            rows.append(_row(method, name, by_class[name], people) | size | {"people": people})
        for mean, members in (("macro", by_class.keys()), ("macro unseen", by_class.keys() & {*unseen})):
            if members:
                together = _mean_where_defined(np.stack([by_class[name] for name in members]))
                size = {"windows": len(labels), "people": everyone, "classes": len(members)}
                rows.append(_row(method, mean, together, everyone) | size)
    return rows, list(dict.fromkeys(notes))


def _row(method: str, name: str, replicates: Float[np.ndarray, " r"], people: int) -> Row:
    score, interval = score_and_interval(replicates, people)
    return {"method": method, "task": "auroc", "class": name, "score": score, "ci95": interval}


def _auroc_over_draws(
    draws: Float[np.ndarray, "d n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    return np.mean([auroc(scores, positive, weights) for scores in draws], axis=0)


def _mean_auroc(scores: Float[np.ndarray, "v c"], labels: Float[np.ndarray, "v c"]) -> float:
    """The mean AUROC of the classes that have days of both kinds; 0 where none has."""
    each = [
        auroc(score[counts], label[counts] > 0, np.ones(int(counts.sum())))
        for score, label, counts in zip(scores.T, labels.T, ~np.isnan(labels.T), strict=True)
        if counts.any()
    ]
    return float(np.nanmean(each)) if not np.isnan(each).all() else 0.0


def _mean_where_defined(replicates: Float[np.ndarray, "c r"]) -> Float[np.ndarray, " r"]:
    """The mean over the classes that a draw of people has days of; NaN for a draw that has days of none."""
    defined = ~np.isnan(replicates)
    total, count = np.where(defined, replicates, 0).sum(axis=0), defined.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
