"""Probes: what is fitted on features, on whose examples, with which regularisation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lsm_jax.evals.probe_tasks import Task

_INVERSE_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, for features of unit variance
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10000.0)  # scikit-learn's alpha, likewise
_UNTUNED = 2  # which of them where nobody tunes
_CLIP = 10.0  # standard deviations: one outlier in a test window must not decide a linear score
_COMPONENTS = 50  # of the PCA
_TREES, _LEAVES = 100, 8
TUNING_FOLDS = 5
_ROUNDING = 1e-6  # of a feature's size: smaller differences are rounding noise
_RANK = 1e-12  # of the greatest variance along an axis: smaller ones are rounding noise
_SURE = 1e-6  # the smallest probability that the loss believes

Scores = Float[np.ndarray, "n k"]  # probabilities of the classes, or one column with the predicted number
Part = Int[np.ndarray, " p"]  # positions of examples


class _Parts(NamedTuple):
    """Features of the examples of a fold."""

    train: Float[np.ndarray, "a f"]
    tune: Float[np.ndarray, "b f"]
    test: Float[np.ndarray, "c f"]

    @property
    def learnt(self) -> Float[np.ndarray, "ab f"]:
        """Of those to fit on, and of those to choose on, in the order of `_learnt_from`."""
        return np.concatenate([self.train, self.tune])


class Fold(NamedTuple):
    """Examples to fit on, to choose regularisation on, and to score: of different people."""

    train: Part
    tune: Part
    test: Part


def split_fold(task: Task, split: str, seed: int) -> Fold:
    """The dataset's splits. A fifth of the training people tune where validation people are scored, or lack.

    One person of fewer than five tunes; nobody does where there is a single one.
    """
    train, tune, test = (np.flatnonzero(task.split == name) for name in ("train", "validation", split))
    if len(train) and (split == "validation" or not len(tune)):
        groups = min(TUNING_FOLDS, len({*task.participant[train].tolist()}))
        tuning = (person_groups(task, train, groups, seed) == 0) & (groups > 1)
        train, tune = train[~tuning], train[tuning]
    return Fold(train, tune, test)


def person_folds(task: Task, count: int, seed: int) -> Iterator[Fold]:
    """Each of `count` groups of people scored once, with the next group to tune on and all others to fit on."""
    everyone = np.arange(len(task))
    group = person_groups(task, everyone, count, seed)
    for test in range(count):
        tune = (test + 1) % count
        yield Fold(*(np.flatnonzero(part) for part in (~np.isin(group, (test, tune)), group == tune, group == test)))


def person_groups(task: Task, part: Part, count: int, seed: int) -> Int[np.ndarray, " p"]:
    """A group from 0 for each example: whole people, with similar targets in each group.

    People are ordered by their mean target, and each `count` neighbours are dealt to different groups at random.
    """
    people, person = np.unique(task.participant[part], return_inverse=True)
    mean = np.bincount(person, task.target[part]) / np.bincount(person)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(len(people)), mean))
    dealt = np.concatenate([rng.permutation(count) for _ in range(-(-len(people) // count))])
    group = np.empty(len(people), int)
    group[order] = dealt[: len(people)]
    return group[person]


def linear_probe(x: Float[np.ndarray, "n f"], task: Task, fold: Fold, *, refit: bool = True) -> Scores:
    """Logistic or ridge regression with the regularisation that is best on the tuning people.

    Args:
      x: features of all examples, NaN where missing.
      refit: whether the tuning people are then learnt from, too.
    """
    learnt = _learnt_from(fold, True)
    examples = _standardised(x[np.concatenate([learnt, fold.test])], np.arange(len(fold.train)))
    if examples.shape[1] > len(learnt):
        examples = _in_span_of(examples, len(learnt))
    parts = _Parts(*np.split(examples, np.cumsum([len(fold.train), len(fold.tune)])))
    return (_logistic if task.classes else _ridge)(task, fold, parts, refit)


def pca_probe(x: Float[np.ndarray, "n f"], task: Task, fold: Fold) -> Scores:
    """`linear_probe` on principal components of the training examples; missing features have the mean."""
    x = _standardised(x, fold.train)
    components = min(_COMPONENTS, len(fold.train) - 1, x.shape[1])
    pca = PCA(components, svd_solver="full").fit(x[fold.train])
    known = pca.explained_variance_ > _RANK * pca.explained_variance_[0]
    return linear_probe(pca.transform(x)[:, known], task, fold)


# Threads would wait for each other on few examples, and sum in another order each time.
@threadpool_limits.wrap(limits=1, user_api="openmp")
def tree_probe(x: Float[np.ndarray, "n f"], task: Task, fold: Fold) -> Scores:
    """Gradient-boosted trees, as many as are best on the tuning people."""
    x = _varying(x, fold.train)
    settings: dict[str, Any] = {"max_leaf_nodes": _LEAVES, "random_state": 0, "early_stopping": False}
    kind = HistGradientBoostingClassifier if task.classes else HistGradientBoostingRegressor
    if task.classes:
        settings["class_weight"] = "balanced"
    learnt = _learnt_from(fold, True)
    settings["max_bins"] = int(np.clip(len(learnt), 2, 255))  # more bins than values take time and change nothing
    settings["min_samples_leaf"] = int(np.clip(len(fold.train) // 10, 2, 20))
    model = kind(max_iter=_TREES, **settings).fit(x[fold.train], task.target[fold.train])
    trees = _TREES
    if len(fold.tune):
        stages = (model.staged_predict_proba if task.classes else model.staged_predict)(x[fold.tune])
        losses = [loss_of(_by_class(stage, model, task), task, fold.tune) for stage in stages]
        trees = 1 + int(np.argmin(losses))
    model = kind(max_iter=trees, **settings).fit(x[learnt], task.target[learnt])
    predicted = (model.predict_proba if task.classes else model.predict)(x[fold.test])
    return _by_class(predicted, model, task)


def class_blind(task: Task, folds: Sequence[Fold]) -> list[Scores]:
    """The shares of the classes, or the mean, of the examples learnt from.

    The same for all folds: a constant of each fold would rise where the targets of its test people are low.
    """
    target = task.target[np.concatenate([_learnt_from(fold, True) for fold in folds])]
    each = [np.mean(target == number) for number in range(len(task.classes))] or [target.mean()]
    return [np.tile(each, (len(fold.test), 1)) for fold in folds]


def few_people(task: Task, part: Part, count: int, seed: Sequence[int]) -> Part:
    """All examples of `count` random people; none where they are not to be had with two different targets."""
    people = np.unique(task.participant[part])
    rng = np.random.default_rng(seed)
    for _ in range(100 if len(people) > count else 0):
        chosen = part[np.isin(task.participant[part], rng.permutation(people)[:count])]
        if len({*task.target[chosen].tolist()}) > 1:
            return chosen
    return part[:0]


def _learnt_from(fold: Fold, refit: bool) -> Part:
    return np.concatenate([fold.train, fold.tune]) if refit else fold.train


def _standardised(x: Float[np.ndarray, "n f"], train: Part) -> Float[np.ndarray, "n f"]:
    """Features that vary in training, with mean 0 and variance 1 there; missing ones are 0."""
    x = _varying(x, train)
    x = StandardScaler().fit(x[train]).transform(x)
    x[np.isnan(x)] = 0
    return np.clip(x, -_CLIP, _CLIP, out=x)


def _varying(x: Float[np.ndarray, "n f"], train: Part) -> Float[np.ndarray, "n v"]:
    """The features with two different values in training; one that is always 0 where there are none.

    The mean of equal numbers over windows can differ from them in its last digit, which is no variation.
    """
    low, high = np.fmin.reduce(x[train], axis=0), np.fmax.reduce(x[train], axis=0)
    varies = high - low > _ROUNDING * np.fmax(np.abs(high), np.abs(low))  # not so where both are NaN
    return x[:, varies].astype(np.float64) if varies.any() else np.zeros((len(x), 1))


def _in_span_of(x: Float[np.ndarray, "n f"], count: int) -> Float[np.ndarray, "n r"]:
    """Coordinates of examples along the principal axes of the first `count`, in whose span the weights lie.

    A rotation, so that nothing changes but the number of columns, which is at most `count`.
    """
    products = x @ x[:count].T
    power, axes = scipy.linalg.eigh(products[:count])
    kept = power > _RANK * power[-1]
    return products @ (axes[:, kept] / np.sqrt(power[kept]))


def _ridge(task: Task, fold: Fold, x: _Parts, refit: bool) -> Scores:
    """Ridge regression. The strengths are targets of one model, so that the features are multiplied once."""
    target = task.target[fold.train]
    model = Ridge(alpha=_STRENGTHS).fit(x.train, np.repeat(target[:, None], len(_STRENGTHS), axis=1))
    best = _UNTUNED
    if len(x.tune):
        best = int(np.argmin(np.mean((model.predict(x.tune) - task.target[fold.tune, None]) ** 2, axis=0)))
    if not refit:
        return model.predict(x.test)[:, best, None]
    model = Ridge(alpha=_STRENGTHS[best])
    learnt = task.target[_learnt_from(fold, True)]
    return model.fit(x.learnt, learnt).predict(x.test)[:, None]


def _logistic(task: Task, fold: Fold, x: _Parts, refit: bool) -> Scores:
    """Logistic regression. A fit begins where a stronger regularisation ended; the first that is worse is the last."""
    settings: dict[str, Any] = {"class_weight": "balanced", "solver": "newton-cg", "max_iter": 500}
    model = LogisticRegression(warm_start=True, **settings)
    lowest, best, scores = np.inf, _INVERSE_STRENGTHS[0], np.zeros((0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in _INVERSE_STRENGTHS if len(x.tune) else [_INVERSE_STRENGTHS[_UNTUNED]]:
            model.set_params(C=strength).fit(x.train, task.target[fold.train])
            loss = loss_of(_by_class(model.predict_proba(x.tune), model, task), task, fold.tune) if len(x.tune) else 0.0
            if loss >= lowest:
                break
            lowest, best, scores = loss, strength, _by_class(model.predict_proba(x.test), model, task)
        if refit:
            learnt = task.target[_learnt_from(fold, True)]
            model = LogisticRegression(C=best, **settings).fit(x.learnt, learnt)
            scores = _by_class(model.predict_proba(x.test), model, task)
    return scores


def _by_class(predicted: np.ndarray, model: Any, task: Task) -> Scores:
    """A column for every class of the task: 0 for one that the model has not seen."""
    if not task.classes:
        return predicted[:, None]
    scores = np.zeros((len(predicted), len(task.classes)))
    scores[:, model.classes_.astype(int)] = predicted
    return scores


def loss_of(scores: Scores, task: Task, part: Part) -> float:
    """Squared error, or log loss averaged over classes; 0 for no example."""
    target = task.target[part]
    if not len(part):
        return 0.0
    if not task.classes:
        return float(np.mean((scores[:, 0] - target) ** 2))
    losses = -np.log(np.maximum(scores[np.arange(len(part)), target.astype(int)], _SURE))
    return float(np.mean([losses[target == number].mean() for number in np.unique(target)]))
