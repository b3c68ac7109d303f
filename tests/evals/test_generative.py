import dataclasses
import json
import re
import types

import numpy as np
import pytest
from tiny_run import CHANNELS, MINUTES, tiny_dataset, tiny_run

from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.generative import METHODS, Generative
from lsm_jax.evals.imputers import BASELINES
from lsm_jax.evals.suite import unique_names
from lsm_jax.evals.task_batches import by_person, model_batch, other_days, person_stacks, scored_cells, task_pairs
from lsm_jax.objectives import MaskedObjective
from lsm_jax.objectives.base import EncoderAblation
from lsm_jax.tokens.tasks import GENERATIVE_TASKS, Task

TASKS = (
    Task("random_imputation", share=0.5),
    Task("temporal_extrapolation", minutes=60),
    Task("sensor_imputation", share=0.5),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def real_run(dataset):
    return tiny_run(dataset.path)


class Constant(MaskedObjective):
    """An objective that answers everything with one number."""

    def __init__(self, tokens, answer):
        self.tokens, self.answer = tokens, answer

    def ablate_encoder(self, params, batch, hidden, other):
        answer = np.full(batch["values"].shape, self.answer, np.float32)
        return EncoderAblation(answer, 2 * answer, answer)


def with_answer(run, answer):
    return dataclasses.replace(run, objective=Constant(run.objective.tokens, answer))


def row(rows, **keys):
    found = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    assert len(found) == 1, (keys, len(found))
    return found[0]


@pytest.fixture(scope="module")
def results(real_run, dataset):
    return Generative(batch_size=8).run(with_answer(real_run, 0.1), [dataset])


def test_the_real_model_is_scored(real_run, dataset):
    result = Generative(tasks=TASKS[:1], batch_size=8).run(real_run, [dataset])
    whole = row(result.results, channel="all", method="model")
    assert 0 < whole["mse"] < 5  # untrained, of z-scored values
    assert whole["windows"] == len(dataset.source("test"))


def test_rows_keep_the_contract(results, dataset):
    first = results.results[0]
    assert {"task", "setting", "channel", "method", "mse", "mae", "ci95", "windows", "people"} <= first.keys()
    fitting = [task for task in GENERATIVE_TASKS if task.minutes < MINUTES]
    assert {(r["task"], r["setting"]) for r in results.results} == {(task.name, task.setting) for task in fitting}
    assert {r["channel"] for r in results.results} == {*CHANNELS, "all"}
    assert {r["method"] for r in results.results} == {*METHODS}
    assert {"model", "model_swapped_encoder", "context_only", *BASELINES} == {*METHODS}
    held_out = dataset.source("test")
    whole = row(results.results, task="random_imputation", setting="80%", channel="all", method="model")
    assert whole["windows"] == len(held_out)
    assert whole["people"] == len({*held_out.participants}) == 2
    assert whole["ci95"][0] <= whole["mse"] <= whole["ci95"][1]


def test_totals_are_sums_over_channels(results):
    for method in METHODS:
        rows = [
            r for r in results.results if (r["task"], r["setting"], r["method"]) == ("sensor_imputation", "50%", method)
        ]
        parts, whole = [r for r in rows if r["channel"] != "all"], row(rows, channel="all")
        assert sum(r["cells"] for r in parts) == whole["cells"]
        np.testing.assert_allclose(sum(r["mse"] * r["cells"] for r in parts) / whole["cells"], whole["mse"])


def test_written_whole_and_strict(results, tmp_path):
    path = results.write(tmp_path / "eval")
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["results"] == results.results
    assert content["provenance"]["split"] == "test"
    assert content["provenance"]["step"] == 7
    table = path.with_suffix(".md").read_text()
    assert re.search(r"\| random_imputation +\| 80% +\|.*\*\*0\.\d{3}\*\*", table)
    assert "heart_rate" in table
    assert sorted(file.name for file in path.parent.iterdir()) == ["generative.json", "generative.md"]


def test_batch_size_changes_nothing(real_run, dataset):
    constant = with_answer(real_run, 0.3)
    small, large = (Generative(tasks=TASKS, batch_size=size).run(constant, [dataset]) for size in (3, 32))
    for one, other in zip(small.results, large.results, strict=True):
        assert one["cells"] == other["cells"]
        np.testing.assert_allclose(one["mse"], other["mse"], rtol=1e-9)


def test_scores_are_those_of_a_plain_loop(real_run, dataset):
    """Extrapolation: the last 60 minutes of the recorded span, model 0.3 everywhere, by hand."""
    spec, errors, natural, last = real_run.spec, [], [], []
    source = dataset.source("test")
    for index in range(len(source)):
        window = source[index]
        patches = window.observed.reshape(-1, 10, 3).any(axis=(1, 2))
        end = (int(np.flatnonzero(patches)[-1]) + 1) * 10
        for column in range(3):
            scaled = (window.values[:, column] - spec.mean[column]) / spec.sd[column]
            hidden = np.flatnonzero(
                window.observed[:, column] & (np.arange(MINUTES) >= end - 60) & (np.arange(MINUTES) < end)
            )
            seen = np.flatnonzero(window.observed[: end - 60, column])
            errors += [(0.3 - scaled[minute]) ** 2 for minute in hidden]
            last += [(scaled[seen[-1]] - scaled[minute]) ** 2 for minute in hidden]
            if CHANNELS[column] == "steps":
                guess = max(0.3 * spec.sd[column] + spec.mean[column], 0)
                natural += [abs(guess - window.values[minute, column]) for minute in hidden]
    result = Generative(tasks=TASKS).run(with_answer(real_run, 0.3), [dataset]).results
    chosen = {"task": "temporal_extrapolation", "setting": "60min"}
    np.testing.assert_allclose(row(result, **chosen, channel="all", method="model")["mse"], np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(row(result, **chosen, channel="all", method="last")["mse"], np.mean(last), rtol=1e-4)
    steps = row(result, **chosen, channel="steps", method="model")
    np.testing.assert_allclose(steps["mae_natural"], np.mean(natural), rtol=1e-4)
    assert steps["unit"] == "steps/min"


def test_predictions_below_zero_are_clipped_in_natural_units(real_run, dataset):
    result = Generative(tasks=TASKS).run(with_answer(real_run, -50.0), [dataset]).results
    steps = row(result, task="sensor_imputation", setting="50%", channel="steps", method="model")
    assert steps["mae_natural"] < 60
    assert steps["mae"] > 45
    heart = row(result, task="sensor_imputation", setting="50%", channel="heart_rate", method="model")
    sd = real_run.spec.sd[CHANNELS.index("heart_rate")]
    np.testing.assert_allclose(heart["mae_natural"], heart["mae"] * sd, rtol=1e-4)


def test_the_model_never_sees_hidden_cells(real_run, dataset):
    grid, number = real_run.objective.tokens, dict.fromkeys(dataset.source("test").participants, 0)
    windows = next(iter(person_stacks(dataset.source("test"), real_run.spec, number, None)))
    for pairs in task_pairs(windows, TASKS, grid, 0, 4):
        visible, cells = scored_cells(windows, pairs, grid)
        batch, hidden = model_batch(windows, pairs, visible)
        assert (batch["values"][tuple(cells)] == 0).all()
        assert hidden.sum() == pairs.hidden.sum()
        poisoned = dataclasses.replace(windows, values=windows.values.copy())
        for position, row_of_window in enumerate(pairs.window):
            here = cells.window == position
            poisoned.values[row_of_window, cells.step[here], cells.channel[here]] = np.nan
            alone = dataclasses.replace(pairs, window=pairs.window[[position]], hidden=pairs.hidden[[position]])
            again, _ = model_batch(poisoned, alone, visible[[position]])
            assert (again["values"][0] == batch["values"][position]).all()
            poisoned.values[row_of_window] = windows.values[row_of_window]


def test_an_encoder_is_swapped_with_another_window_of_the_batch(dataset, real_run):
    grid, number = real_run.objective.tokens, dict.fromkeys(dataset.source("test").participants, 0)
    windows = next(iter(person_stacks(dataset.source("test"), real_run.spec, number, None)))
    for pairs in task_pairs(windows, TASKS, grid, 0, 8):
        other = np.asarray(other_days(pairs))
        assert other.shape == pairs.window.shape
        for row_of_window, of_other in zip(pairs.window, other, strict=False):
            if len({*pairs.window}) > 1:
                assert pairs.window[of_other] != row_of_window
    alone = dataclasses.replace(pairs, window=pairs.window[:1])
    assert other_days(alone)[0] == -1  # none


def test_the_encoders_contribution_is_against_the_swapped_one(results):
    contribution = row(results.encoder, task="sensor_imputation", setting="50%", baseline="model_swapped_encoder")
    chosen = {"task": "sensor_imputation", "setting": "50%", "channel": "all"}
    model, swapped = (row(results.results, **chosen, method=method)["mse"] for method in METHODS[:2])
    np.testing.assert_allclose(contribution["improvement"], 1 - model / swapped)
    assert contribution["ci95"][0] <= contribution["improvement"] <= contribution["ci95"][1]
    assert "| encoder" in results.markdown()


def test_people_stay_whole_whatever_the_stack(dataset, real_run):
    source = dataset.source("train")
    number = {name: position for position, name in enumerate(sorted({*source.participants}))}
    stacks = list(person_stacks(source, real_run.spec, number, None, size=4))
    assert sum(len(stack.values) for stack in stacks) == len(source)
    assert len(stacks) > 2
    seen = [{*stack.person.tolist()} for stack in stacks]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(number)


def test_storage_order_changes_nothing(dataset, real_run):
    source, order = dataset.source("train"), np.random.default_rng(0).permutation(len(dataset.source("train")))

    class Shuffled:
        """A dataset as Beam writes it: people in no order."""

        path, channels, faults = source.path, source.channels, source.faults
        participants = np.array(source.participants)[order]
        steps, start_seconds = source.steps[order], source.start_seconds[order]

        def __len__(self):
            return len(order)

        def record(self, position):
            return source.record(int(order[position]))

        def window(self, position, record=None):
            return source.window(int(order[position]), record)

    person_index = dict.fromkeys(source.participants, 0) | {source.participants[0]: 1}
    stored, shuffled = (
        list(person_stacks(one, real_run.spec, person_index, None, size=4)) for one in (source, Shuffled())
    )
    assert Shuffled.participants.tolist() != source.participants
    for one, other in zip(stored, shuffled, strict=True):
        assert (one.values == other.values).all()
        assert (one.identity == other.identity).all()


def test_a_quick_look_takes_fewer(real_run, dataset):
    result = Generative(tasks=TASKS, max_windows=3).run(with_answer(real_run, 0.0), [dataset])
    assert max(r["windows"] for r in result.results) == 3
    assert result.provenance["datasets"]["tiny"]["windows"] == 3


@pytest.mark.parametrize(("limit", "kept"), [(1, "b"), (3, "bbb"), (4, "bbb"), (5, "bbbcc"), (None, "bbbccd")])
def test_a_quick_look_takes_people_whole(limit, kept):
    source = types.SimpleNamespace(participants=list("cbbdbc"), start_seconds=np.arange(6))
    assert "".join(source.participants[position] for position in by_person(source, limit)) == kept


def test_two_datasets_are_compared_separately(real_run, dataset, tmp_path):
    other = tiny_dataset(tmp_path / "other", seed=5)
    both = [dataset, other]
    result = Generative(tasks=TASKS).run(with_answer(real_run, 0.0), both)
    assert {r["dataset"] for r in result.by_dataset} == {"tiny", "tiny-2"} == {*unique_names(both)}
    parts = [r for r in result.by_dataset if r["task"] == "sensor_imputation"]
    whole = row(result.comparisons, task="sensor_imputation", setting="50%", channel="all")
    assert sum(r["people"] for r in parts) == whole["people"] == 4


def test_improvement_is_against_the_best_baseline(results):
    for compared in results.comparisons:
        rows = [r for r in results.results if all(r[key] == compared[key] for key in ("task", "setting", "channel"))]
        best = min((r for r in rows if r["method"] in BASELINES), key=lambda r: r["mse"])
        assert compared["baseline"] == best["method"]
        np.testing.assert_allclose(compared["improvement"], 1 - row(rows, method="model")["mse"] / best["mse"])


def test_models_with_other_tokens_are_scored_on_equal_cells(real_run, dataset):
    wide = dataclasses.replace(real_run.objective.tokens, patch_channels=2)
    runs = with_answer(real_run, 0.3), dataclasses.replace(real_run, objective=Constant(wide, 0.3))
    fine, coarse = (Generative(tasks=TASKS, mask_channels=2).run(run, [dataset]) for run in runs)
    assert fine.by_person == coarse.by_person
    # Hiding what a token has is the same, and is compared with it.
    own = Generative(tasks=TASKS).run(runs[1], [dataset])
    assert own.by_person == coarse.by_person
    assert own.provenance["mask_channels"] == coarse.provenance["mask_channels"] == 2
    assert fine.by_person != Generative(tasks=TASKS).run(runs[0], [dataset]).by_person
    totals = np.sum([row["scores"]["sensor_imputation 50%"] for row in fine.by_person], axis=0)
    whole = row(fine.results, task="sensor_imputation", channel="all", method="model")
    np.testing.assert_allclose(totals, (whole["mse"] * whole["cells"], whole["cells"]))
    with pytest.raises(UserError, match="not whole tokens"):
        Generative(tasks=TASKS, mask_channels=3).run(runs[1], [dataset])


def test_a_model_without_finite_answers_has_failed(real_run, dataset):
    with pytest.raises(RunError, match="not finite"):
        Generative(tasks=TASKS).run(with_answer(real_run, np.nan), [dataset])


def test_an_objective_that_cannot_reconstruct_is_refused(real_run, dataset):
    with pytest.raises(UserError, match="does not reconstruct"):
        Generative().run(dataclasses.replace(real_run, objective=object()), [dataset])
