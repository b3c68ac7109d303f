"""Figures of an evaluation show the numbers they are given."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex
from tiny_run import tiny_dataset, tiny_run

from lsm_jax.evals.result import EvalResult
from lsm_jax.objectives import MaskedObjective
from lsm_jax.report import charts, reconstructions
from lsm_jax.report.charts import error_over_minutes, line_chart, series
from lsm_jax.report.style import LIGHT


class Constant(MaskedObjective):
    """An objective that reconstructs everything as one number."""

    def __init__(self, tokens, answer):
        self.tokens, self.answer = tokens, answer

    def reconstruct(self, params, batch, hidden):
        return np.full(batch["values"].shape, self.answer, np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


def test_a_reconstruction_draws_what_the_model_says_where_cells_are_hidden(dataset, tmp_path, monkeypatch):
    run = tiny_run(dataset.path)
    run = dataclasses.replace(run, objective=Constant(run.objective.tokens, 0.5))
    drawn = []
    draw = reconstructions.draw_reconstructions
    monkeypatch.setattr(reconstructions, "draw_reconstructions", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    (tmp_path / "reconstruction-other-dataset.png").touch()
    (file,) = reconstructions.write_reconstructions(run, [dataset], tmp_path, "test", 0)
    assert list(tmp_path.iterdir()) == [file]  # what an earlier evaluation drew is gone
    assert file == tmp_path / "reconstruction-tiny.png"
    assert file.stat().st_size > 10_000
    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.lines]
    assert figure.get_suptitle() == "tiny: 4.0 h of a person of the test split"
    titles = [axes.get_title() for axes in panels[:4]]
    assert titles == [
        "random imputation, 80%", "temporal interpolation, 180 min", "temporal extrapolation, 180 min",
        "sensor imputation, 50%",
    ]  # fmt: skip
    answers = run.spec.mean + 0.5 * run.spec.sd
    for axes in panels:
        recorded, model, _ = axes.lines
        assert [to_hex(line.get_color()) for line in (recorded, model)] == [LIGHT["ink"], LIGHT["vermilion"]]
        values = model.get_ydata()[np.isfinite(model.get_ydata())]
        if len(values):
            assert np.abs(answers - values[0]).min() < 1e-3
            assert (values == values[0]).all()
    extrapolation = panels[2].lines[1]
    hours = extrapolation.get_xdata()[np.isfinite(extrapolation.get_ydata())]
    assert hours.min() >= 1.0  # the last three of four hours are hidden


def test_people_never_trained_on_are_called_so_where_it_was_checked(dataset, tmp_path, monkeypatch):
    titles = []
    draw = reconstructions.draw_reconstructions
    monkeypatch.setattr(reconstructions, "draw_reconstructions", lambda *args: titles.append(args[-1]) or draw(*args))
    run = tiny_run(dataset.path)
    run = dataclasses.replace(run, objective=Constant(run.objective.tokens, 0.5))
    reconstructions.write_reconstructions(run, [dataset], tmp_path, "test", 0, never_trained_on=True)
    assert titles == ["tiny: 4.0 h of a person never trained on"]


@pytest.mark.parametrize("rising", [True, False])
def test_a_loss_that_rises_stays_in_the_chart_and_the_first_steps_may_leave_it(monkeypatch, rising):
    figures = []
    monkeypatch.setattr(charts, "inline_svg", lambda figure, _: figures.append(figure))
    metrics = [{"step": step, "loss": 0.3 + 20 / (1 + step)} for step in range(10_000)]
    metrics += [
        {"step": step, "validation_loss": 0.4 + 1e-4 * step * rising + 20 * (step == 0)}
        for step in range(0, 10_001, 1000)
    ]
    line_chart(metrics, {"loss": "training", "validation_loss": "validation"}, "loss")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 0.31 and (1.4 < high < 2 if rising else 0.4 < high < 0.6)


def test_error_over_minutes_keeps_tasks_and_settings_apart():
    def at(minutes, errors):
        rows = [
            {"task": task, "setting": setting, "channel": "all", "model_mse": error, "baseline_mse": 1.0}
            for (task, setting), error in zip(
                [("a_task", "50%"), ("a_task", "80%"), ("other", "60min")], errors, strict=True
            )
        ]
        return EvalResult("generative", [], {"minutes": minutes}, comparisons=rows)

    figure = error_over_minutes([at(5.0, (0.9, 0.8, 0.7)), at(10.0, (0.6, 0.5, 0.4))])
    assert [axes.get_title() for axes in figure.axes] == ["a task", "other"]
    curves = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in curves] == [[5.0, 10.0]] * 2
    assert [line.get_ydata().tolist() for line in curves] == [[0.9, 0.6], [0.8, 0.5]]
    assert curves[0].get_color() != curves[1].get_color()


def test_a_series_leaves_out_what_is_no_number():
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": "x"}, {"step": 4}]
    steps, values = series(metrics, "loss")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.0])
    assert all(len(part) == 0 for part in series(metrics, "other"))
