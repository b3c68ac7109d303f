"""The synthetic cohort: reproducible, plausible, physiologically correlated, with realistic gaps."""

import numpy as np
import pytest

from lsm_jax.channels import MINUTELY_26, REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.synth.activities import NAMES
from lsm_jax.synth.cohort import PersonDays, simulate_person, windows
from lsm_jax.windows import MINUTES_PER_DAY

COLUMN = {name: column for column, name in enumerate(MINUTELY_26)}


@pytest.fixture(scope="module")
def cohort() -> list[PersonDays]:
    """160 people, three days each."""
    return [simulate_person(index, days=3, seed=11) for index in range(160)]


def same(one, other) -> bool:
    return (
        np.array_equal(one.values, other.values)
        and np.array_equal(one.observed, other.observed)
        and (one.participant, one.start, one.labels, one.events)
        == (other.participant, other.start, other.labels, other.events)
    )


def test_same_seed_same_cohort_whatever_its_size():
    few, many, others = list(windows(2, 2, seed=5)), list(windows(4, 2, seed=5)), list(windows(2, 2, seed=6))
    assert len(few) == 4 and len({window.participant for window in many}) == 4
    assert all(same(one, other) for one, other in zip(few, many, strict=False))
    assert not any(same(one, other) for one, other in zip(few, others, strict=True))
    assert not {window.participant for window in few} & {window.participant for window in others}


def test_windows_are_local_days_and_truth_only_fills_gaps():
    recorded, truth = list(windows(3, 2, seed=1)), list(windows(3, 2, seed=1, truth=True))
    for window, complete in zip(recorded, truth, strict=True):
        assert window.values.shape == (MINUTES_PER_DAY, 26) and window.channels == MINUTELY_26
        local = window.start.hour * 60 + window.start.minute + window.utc_offset_minutes
        assert local % MINUTES_PER_DAY == 0
        assert complete.observed.all() and (window.values[~window.observed] == 0).all()
        assert np.array_equal(complete.values[window.observed], window.values[window.observed])
        assert (complete.participant, complete.start, complete.events) == (
            window.participant,
            window.start,
            window.events,
        )


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_cohorts_are_refused(arguments):
    with pytest.raises(UserError, match="must be"):
        windows(*arguments)


def test_values_are_plausible_and_marginals_near_the_published(cohort):
    values = np.concatenate([person.values for person in cohort])
    observed = np.concatenate([person.observed for person in cohort])
    for name, column in COLUMN.items():
        kind, seen = REGISTRY[name], values[observed[:, column], column]
        assert kind.low <= values[:, column].min() and values[:, column].max() <= kind.high, name
        assert abs(seen.mean() - kind.mean) < 0.5 * kind.sd, name
        assert 0.6 < seen.std() / kind.sd < 1.5, name


def test_beat_intervals_agree_with_heart_rate(cohort):
    values = np.concatenate([person.values for person in cohort[:20]])
    low, median, high = (values[:, COLUMN[name]] for name in ("rr_20th_percentile", "rr_median", "rr_80th_percentile"))
    assert (low < median).mean() > 0.98 and (median < high).mean() > 0.98
    expected = 60000 / values[:, COLUMN["heart_rate"]]
    assert np.median(np.abs(median - expected) / expected) < 0.03


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        ("heart_rate", "rr_median", -1),
        ("heart_rate", "rmssd", -1),
        ("heart_rate", "rr_entropy", -1),
        ("heart_rate", "steps", 1),
        ("heart_rate", "acc_log_energy", 1),
        ("heart_rate", "sleep_coefficient", -1),
        ("sleep_coefficient", "acc_log_energy", -1),
        ("sleep_coefficient", "skin_temperature", 1),
        ("skin_conductance_level", "heart_rate", 1),
        ("skin_conductance_level", "eda_lead_contact", 1),
        ("rr_percent_valid", "acc_log_energy", -1),
        ("steps", "altitude_sd", 1),
    ],
)
def test_channels_move_together_within_a_person(cohort, one, other, sign):
    correlations = [np.corrcoef(p.values[:, COLUMN[one]], p.values[:, COLUMN[other]])[0, 1] for p in cohort[:30]]
    assert sign * np.mean(correlations) > 0.1


def test_heart_rate_follows_exercise_with_a_lag(cohort):
    """Running starts at once in the steps; the heart needs minutes."""
    rises = []
    for person in cohort:
        for event in person.events:
            if event.name == "running" and event.start > 10 and event.end - event.start > 20:
                heart = person.values[event.start - 5 : event.start + 20, COLUMN["heart_rate"]]
                rises.append(heart - heart[:5].mean())
    rise = np.mean(rises, axis=0)
    assert len(rises) > 5 and rise[15:].mean() > 30
    assert 0 < rise[5] < 0.7 * rise[15:].mean()


def test_about_half_is_missing_and_long_gaps_dominate(cohort):
    shares = [1 - day.mean() for person in cohort for day in person.observed.reshape(3, -1)]
    assert 0.43 < np.mean(shares) < 0.55
    assert np.std(shares) > 0.1 and min(shares) > 0 and max(shares) < 1
    lengths = np.concatenate([gaps(person.observed[:, column]) for person in cohort for column in range(26)])
    assert lengths[lengths >= 60].sum() > 0.8 * lengths.sum()
    assert (lengths < 10).mean() > 0.5


def gaps(observed):
    """Lengths of the runs of False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], observed.astype(np.int8), [1]])))
    return edges[1::2] - edges[::2]


def test_beat_intervals_are_lost_in_motion(cohort):
    lost_moving, lost_still = [], []
    for person in cohort:
        worn = person.observed[:, COLUMN["steps"]] & person.observed[:, COLUMN["heart_rate"]]
        if not person.observed[:, COLUMN["rr_median"]].any():
            continue
        moving = person.values[:, COLUMN["steps"]] > 80
        lost = ~person.observed[:, COLUMN["rr_median"]]
        lost_moving.append(lost[worn & moving].mean() if (worn & moving).any() else np.nan)
        lost_still.append(lost[worn & ~moving].mean())
    assert np.nanmean(lost_moving) > np.nanmean(lost_still) + 0.2


def test_events_lie_in_their_window_and_agree_with_the_signals(cohort):
    names = set()
    for person in cohort:
        energy, steps = person.values[:, COLUMN["acc_log_energy"]], person.values[:, COLUMN["steps"]]
        for event in person.events:
            names.add((event.kind, event.name))
            inside = slice(max(event.start, 0), event.end)
            if event.kind == "sleep" and event.end - event.start > 180 and event.end - 60 > 0:
                assert np.median(energy[inside]) < np.median(energy)
            if event.name in ("walking", "running", "elliptical"):
                assert np.median(steps[inside]) > 60
        for window in person.windows():
            assert all(0 <= event.start < event.end <= MINUTES_PER_DAY for event in window.events)
    assert {name for kind, name in names if kind == "activity"} == set(NAMES)
    assert {kind for kind, _ in names} == {"activity", "sleep", "mood", "meal"}


def test_a_sleep_over_midnight_is_cut_in_two(cohort):
    for person in cohort[:40]:
        first, second, _ = person.windows()
        before = [event for event in first.events if event.kind == "sleep" and event.end == MINUTES_PER_DAY]
        after = [event for event in second.events if event.kind == "sleep" and event.start == 0]
        assert len(before) == len(after)
    assert any(event.start < 0 for person in cohort for event in person.events)


def test_person_labels_can_be_learnt_from_the_signals(cohort):
    """Ridge regression from simple day statistics, fitted on half of the people, predicts the other half."""
    features, labels = [], []
    for person in cohort:
        values = np.where(person.observed, person.values, np.nan)
        values[:, [COLUMN["rmssd"], COLUMN["sdnn"]]] = np.log(values[:, [COLUMN["rmssd"], COLUMN["sdnn"]]])
        seen = person.observed.any(axis=0)
        summary = np.full((2, 26), np.nan)
        summary[:, seen] = np.nanmean(values[:, seen], axis=0), np.nanstd(values[:, seen], axis=0)
        features.append(summary.ravel())
        person_labels = person.person.labels()
        labels.append([person_labels[name] for name in ("age", "bmi", "hypertension", "anxiety")])
    predicted, truth = held_out_ridge(np.array(features), np.array(labels))
    age, bmi, hypertension, anxiety = (np.corrcoef(predicted[:, k], truth[:, k])[0, 1] for k in range(4))
    assert age > 0.4 and bmi > 0.3 and hypertension > 0.25 and anxiety > 0.15


def held_out_ridge(features, labels, strength=30.0):
    half = len(features) // 2
    mean, sd = np.nanmean(features[:half], axis=0), np.nanstd(features[:half], axis=0)
    scaled = np.nan_to_num((features - mean) / sd)
    centred = labels - labels[:half].mean(axis=0)
    gram = scaled[:half].T @ scaled[:half] + strength * np.eye(scaled.shape[1])
    return scaled[half:] @ np.linalg.solve(gram, scaled[:half].T @ centred[:half]), labels[half:]


def test_activity_classes_are_separable(cohort):
    """The nearest class mean of one half of the people names the sessions of the other far better than chance."""
    sessions, classes, fitted = [], [], []
    for number, person in enumerate(cohort):
        for event in person.events:
            if event.kind == "activity":
                sessions.append(person.values[max(event.start, 0) : event.end].mean(axis=0))
                classes.append(NAMES.index(event.name))
                fitted.append(number % 2 == 0)
    sessions, classes, fitted = np.array(sessions), np.array(classes), np.array(fitted)
    scaled = (sessions - sessions.mean(axis=0)) / sessions.std(axis=0)
    classes_fitted = sorted({*classes[fitted].tolist()})
    centres = np.stack([scaled[fitted & (classes == number)].mean(axis=0) for number in classes_fitted])
    distance = ((scaled[~fitted, None] - centres) ** 2).sum(axis=-1)
    assert (np.array(classes_fitted)[distance.argmin(axis=1)] == classes[~fitted]).mean() > 0.4
