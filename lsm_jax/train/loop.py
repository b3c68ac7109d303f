"""The training loop.

At each step it evaluates the current parameters, saves, then fetches a batch and updates. This order is guaranteed, so
everything in a checkpoint is of the same moment: parameters, optimizer state, random state, data position and clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lsm_jax import objectives
from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec, data_spec, datasets_with_weight, open_datasets
from lsm_jax.data.store import Dataset
from lsm_jax.data.targets import with_targets
from lsm_jax.data.text import CaptionTokens, check_held_out_activities
from lsm_jax.errors import Preempted, RunError, UserError
from lsm_jax.events import EVENTS, EventLog, Report, event_file
from lsm_jax.objectives import Objective
from lsm_jax.sharding import replicated_sentences, sharding_table
from lsm_jax.storage import is_url
from lsm_jax.train.agreement import check_same_datasets
from lsm_jax.train.batches import DeviceBatches
from lsm_jax.train.checkpoints import Checkpoints, CheckpointState
from lsm_jax.train.evaluators import Evaluator, run_evaluators
from lsm_jax.train.guard import guarded
from lsm_jax.train.mesh import check_sizes, make_mesh
from lsm_jax.train.messages import Messages
from lsm_jax.train.metrics import MetricsLog, MetricsRecorder, read_metrics
from lsm_jax.train.mirror import RunStore, run_folder
from lsm_jax.train.processes import PreemptionHandler
from lsm_jax.train.run import Run, encoder_trained_on, keep_normalisation, with_encoder_of
from lsm_jax.train.schedule import SaveTimer, TrainSchedule
from lsm_jax.train.state import (
    LOSS_WEIGHT,
    Program,
    State,
    averaged,
    is_sum,
    is_weighted,
    make_program,
    on_first_device,
)
from lsm_jax.train.step_check import CheckedSteps
from lsm_jax.train.terminal import ProgressReporter
from lsm_jax.train.timing import Clock, LifeSigns, TimedJit, Trace
from lsm_jax.train.trackers import check_trackers, open_trackers
from lsm_jax.train.watchdog import Watchdog
from lsm_jax.train.workdir import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    TENSORBOARD,
    check_same,
    check_same_data,
    keep_aside,
    run_captions,
    write_config,
    write_data,
    write_trained_on,
)

_MAX_ROLLBACKS = 3  # to one checkpoint
_COLLAPSED_COSINE = 0.98  # of the windows' mean tokens


def train(
    config: Config,
    workdir: Path | str,
    evaluators: Sequence[Evaluator] = (),
    started: float | None = None,
    start_over: bool = False,
) -> int:
    """Trains for `train.duration`. Called again, it resumes from the newest checkpoint.

    All processes of a distributed run call this.

    Args:
      config: from `load_config`.
      workdir: a folder, or a `gs://` or `s3://` URL, the same on all processes. It gets `config.json`, `spec.json`,
        `metrics.jsonl`, `events.jsonl`, `tensorboard/`, `checkpoints/` and `eval/`.
      evaluators: run every `evaluate.suites_every`; those of `evaluate.suites` are `lsm_jax.evals.evaluators(config)`.
      started: seconds since 1970 from which the run's wall time counts; None is now.
      start_over: begin at step 0 even where checkpoints exist. They and the metrics are kept in `earlier-N/`.

    Returns:
      The steps taken in all.

    Raises:
      UserError: a setting or the data is refused, or the workdir belongs to another configuration.
      RunError: `train.max_bad_steps` steps in a row had to be skipped, a step gave other bits when it was repeated,
        more than `data.max_corrupt` records are corrupt, checkpoints cannot be read, or the last one cannot be saved.
      Preempted: SIGTERM or a lost terminal stopped it after a save.
      KeyboardInterrupt: Ctrl-C did.
    """
    clock = Clock(started)
    if missing := {*config.evaluate.suites} - {evaluator.name for evaluator in evaluators}:
        raise UserError(f"evaluate.suites: no evaluator {', '.join(sorted(missing))} was given to train().")
    use_compile_cache()
    if start_over and is_url(workdir):
        raise UserError(f"--start-over renames what is in {workdir}, which a store cannot: use another --workdir.")
    with guarded(config, workdir) as watchdog, run_folder(workdir) as (folder, store):
        watchdog.phase = lambda: clock.bucket
        setup = set_up(config, folder)
        check_suites(evaluators, setup.schedule)
        if jax.process_index() == 0:
            write_config(folder, setup.config, setup.spec, setup.captions)
            write_data(folder, setup.datasets)
            before = encoder_trained_on(folder, config)
            write_trained_on(folder, datasets_with_weight(config.data, setup.datasets), before)
        with contextlib.ExitStack() as stack:
            loop = Loop(setup, evaluators, clock, watchdog, stack, start_over, store)
            step = loop.run()
        watchdog.finish()
        loop.say_the_end()
    return step


def check_suites(evaluators: Sequence[Evaluator], schedule: TrainSchedule) -> None:
    """UserError for suites that would never run, or for times at which nothing would."""
    if evaluators and not schedule.suites_every:
        raise UserError(
            "evaluate.suites would never run: say how often, as in --config.evaluate.suites_every='20 percent'."
        )
    if schedule.suites_every and not evaluators:
        raise UserError(
            "evaluate.suites_every has no suites to run: name them, as in --config.evaluate.suites=generative."
        )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of, before its state and data position are known."""

    config: Config
    workdir: Path
    datasets: Sequence[Dataset]
    spec: DataSpec
    objective: Objective
    captions: CaptionTokens | None
    schedule: TrainSchedule
    program: Program


def set_up(config: Config, workdir: Path) -> Setup:
    """Opens the data and builds the program; UserError as `train`."""
    check_trackers(config.train.trackers)
    datasets = open_datasets(config.data)
    config = with_targets(config, datasets)
    check_same(workdir, config)
    check_same_datasets(datasets)
    spec = data_spec(config.data, datasets)
    if config.model.encoder_from:
        spec = keep_normalisation(spec, workdir, config)
    check_same_data(workdir, config, spec, datasets)
    objective = objectives.build(config, spec)
    if not (workdir / CONFIG).is_file():
        objectives.check_new_run(config)
    captions = run_captions(workdir, config)
    check_held_out_activities(config.language.held_out_activities, datasets)
    schedule = make_schedule(config, datasets)
    program = make_program(config, objective, make_mesh(config.mesh), schedule)
    return Setup(config, workdir, datasets, spec, objective, captions, schedule, program)


class Loop:
    """A run while it trains.

    Args:
      stack: closes what is opened here.
    """

    def __init__(
        self,
        setup: Setup,
        evaluators: Sequence[Evaluator],
        clock: Clock,
        watchdog: Watchdog,
        stack: contextlib.ExitStack,
        start_over: bool = False,
        store: RunStore | None = None,
    ) -> None:
        config, workdir, program, schedule = setup.config, setup.workdir, setup.program, setup.schedule
        process = jax.process_index()
        self._setup, self._evaluators, self._clock, self._watchdog = setup, evaluators, clock, watchdog
        self._reporter = ProgressReporter(schedule.total, enabled=process == 0, lost=self._on_lost_terminal)
        stack.callback(self._reporter.close)
        self._report = EventLog(event_file(workdir, process), process, self._reporter.message).report
        if start_over:
            self._start_over()
        setup.datasets[0].faults.begin_run(workdir, process, self._report)
        self._reporter.message(overview(config, setup.spec, setup.objective, program, schedule))
        for sentence in replicated_sentences(program.mesh.shape, program.shapes.params):
            self._report("large_parameter_replicated", sentence)
        self._checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep, self._report, store)
        stack.callback(self._checkpoints.close)
        watchdog.saving = lambda: self._checkpoints.saving
        restored = self._checkpoints.restore_latest(program.shapes)
        self._state, position = init_or_restore(setup, restored, clock, self._report)
        self._step = int(self._state.step)
        self._batches = DeviceBatches(config, setup.datasets, setup.spec, program, schedule, setup.captions, position)
        stack.callback(self._batches.close)
        self._train_step = CheckedSteps(
            TimedJit(program.step, clock), program, clock, config.train.sdc_check_every, self._report
        )
        self._validation_step = TimedJit(program.evaluate, clock)
        log = None
        if process == 0:
            names, resumed_at = config.train.trackers, self._step if restored else -1
            trackers = open_trackers(config, workdir, self._report)
            log = MetricsLog(workdir, resumed_at, self._report, TENSORBOARD in names, trackers)
        self._recorder = MetricsRecorder(
            config, clock, schedule, log, self._reporter, self._report, int(self._state.skipped)
        )
        stack.enter_context(self._recorder)
        self._validated, self._scored = self._evaluated_before()
        self._trace = stack.enter_context(contextlib.closing(Trace(config.train.profile_steps, workdir)))
        self._preemption = stack.enter_context(PreemptionHandler())
        self._save_timer = SaveTimer(schedule.save_seconds, of_first_process)
        self._rollbacks = 0

    def run(self) -> int:
        """Trains up to the end, or until it is asked to stop; returns the steps taken in all."""
        self._clock.begin_loop()
        self._recorder.start_interval()
        saved, due = self._step, False
        while True:
            step = self._step
            stops = self._preemption.should_stop(step)
            # A preempted run has seconds left: it saves, and evaluates when it is resumed.
            if not stops:
                self._evaluate(step)
            last = stops or step >= self._setup.schedule.total
            timed = self._save_timer.due()
            due = step > saved and (due or timed or self._setup.schedule.saves(step))
            if step > saved and (last or due):
                self._recorder.write_pending()
                # Going back to a checkpoint inside a row of bad steps would not help: it is saved after the row.
                if last or not self._recorder.bad_in_row:
                    self._save(final=last)
                    saved, due = step, False
            if last:
                break
            self._train()
            if self._recorder.must_act:
                self._roll_back()
                saved, due = self._step, False
        self._recorder.write_pending()
        with self._clock.measure("checkpoint"):
            self._checkpoints.close()
        return self._step

    def say_the_end(self) -> None:
        """Reports how the run ended.

        Raises:
          Preempted, KeyboardInterrupt: it was asked to stop.
        """
        setup, seconds = self._setup, self._clock.seconds()
        finished = self._step >= setup.schedule.total
        text = summary(self._step, setup.schedule.total, setup.workdir, seconds, self._recorder.skipped)
        self._report("finished" if finished else "preempted", text, step=self._step, seconds=seconds)
        if jax.process_index() == 0:
            self._clock.write(setup.workdir)
        if not finished:
            raise KeyboardInterrupt if self._preemption.by_keyboard else Preempted(text)

    def _train(self) -> None:
        with self._clock.measure("input"):
            batch, rows = self._batches.next_training()
        captions = self._setup.captions
        if self._step == 0 and captions and (warning := captions.cut_warning(rows["text"])):
            self._report("captions_cut", warning, step=0)
        self._trace.before(self._step)
        with self._clock.measure("step"):
            self._state, metrics = self._train_step(self._step + 1, self._state, batch)
        self._step += 1
        self._watchdog.progress(self._step)
        # While the device runs this step, the host fetches and writes the metrics of the step before.
        corrupt = self._setup.datasets[0].faults.count
        self._recorder.write_late(self._step, metrics | {"corrupt_records": corrupt}, rows)
        self._trace.after(self._step)

    def _evaluate(self, step: int) -> None:
        """Validation loss and suites, if they are due and the run does not have them already."""
        setup, recorder = self._setup, self._recorder
        if setup.schedule.evaluates(step) and step > self._validated:
            self._validated = step
            recorder.write_pending()
            with self._clock.measure("evaluate"):
                metrics = validate(self._validation_step, averaged(self._state), self._batches)
                recorder.write(step, metrics)
            self._reporter.message(f"step {step}: validation loss {metrics['validation_loss']:.5g}")
            if warning := collapse_warning(metrics):
                self._report("collapse", f"step {step}: {warning}", step=step)
        if not (self._evaluators and setup.schedule.runs_suites(step) and step > self._scored):
            return
        self._scored = step
        recorder.write_pending()
        with self._clock.measure("evaluate"):
            params = on_first_device(averaged(self._state), setup.program.mesh)
            minutes = sum(self._clock.seconds().values()) / 60
            tokenizer = setup.captions.tokenizer if setup.captions else None
            run = Run(setup.config, setup.spec, setup.objective, params, step, minutes, tokenizer)
            folder = setup.workdir / EVALUATIONS / f"step-{step}" if jax.process_index() == 0 else None
            recorder.write(step, run_evaluators(self._evaluators, run, setup.datasets, folder))

    def _save(self, final: bool) -> None:
        with self._clock.measure("checkpoint"):
            content = CheckpointState(self._state, self._batches.position, self._clock.seconds())
            self._checkpoints.save(content, final)
        self._save_timer.restart()
        self._rollbacks = 0

    def _evaluated_before(self) -> tuple[int, int]:
        """The last steps whose validation loss and suites are in the metrics; -1 is none.

        A preempted run saves without evaluating, so that a restored step may lack both.
        """

        def last_steps() -> list[int]:
            records = read_metrics(self._setup.workdir) if jax.process_index() == 0 else []
            validated = [record["step"] for record in records if "validation_loss" in record]
            scored = [record["step"] for record in records if any("/" in name for name in record)]
            return [max(validated, default=-1), max(scored, default=-1)]

        validated, scored = Messages().gather(last_steps)[0]
        return validated, scored

    def _start_over(self) -> None:
        """Moves what the run has made aside, before any process reads of it."""
        workdir, first = self._setup.workdir, jax.process_index() == 0
        (earlier, *_) = Messages().gather(lambda: str(keep_aside(workdir) or "") if first else "")
        if first and earlier:
            sentence = f"begins again at step 0; the earlier checkpoints and metrics are in {earlier}"
            self._report("started_over", sentence, step=0)

    def _on_lost_terminal(self, reason: str) -> None:
        self._report("terminal_lost", f"nobody reads standard error any more ({reason}); the run goes on: see {EVENTS}")

    def _roll_back(self) -> None:
        """Goes back to the newest checkpoint and on with the data that comes next.

        Raises:
          RunError: `train.on_bad_steps` is stop, or going back has not helped.
        """
        recorder, train = self._recorder, self._setup.config.train
        fault = f"step {self._step}: {recorder.bad_in_row} steps in a row had to be skipped ({recorder.last_fault})"
        advice = "Lower optimizer.learning_rate, or look for impossible values with `lsm inspect`"
        if train.on_bad_steps == "stop":
            raise RunError(
                f"{fault}. {advice}; with --config.train.on_bad_steps=rollback a run goes back to its last checkpoint "
                "and on with later data."
            )
        if self._rollbacks == _MAX_ROLLBACKS:
            raise RunError(f"{fault}, {_MAX_ROLLBACKS} times since the last checkpoint. {advice}.")
        self._rollbacks += 1
        del self._state  # frees its memory
        restored = self._checkpoints.restore_latest(self._setup.program.shapes)
        if restored is None:
            raise RunError(f"{fault}, and there is no checkpoint to go back to yet. {advice}.")
        self._state, self._step = restored.state, int(restored.state.step)
        self._validated, self._scored = min(self._validated, self._step), min(self._scored, self._step)
        recorder.go_back(self._step, int(restored.state.skipped))
        position = self._batches.position
        self._report(
            "rollback",
            f"{fault}; back to checkpoint {self._step}, and on with the data from batch {position}.",
            step=self._step, position=position,
        )  # fmt: skip


def of_first_process(number: int) -> int:
    """The number that the first process gives; all processes call this."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number


def make_schedule(config: Config, datasets: Sequence[Dataset]) -> TrainSchedule:
    """The schedule of a run on these datasets; UserError where a size or duration is refused."""
    check_sizes(config)
    sampled = datasets_with_weight(config.data, datasets)
    windows, held_out = (sum(len(dataset.source(split)) for dataset in sampled) for split in ("train", "validation"))
    return TrainSchedule.from_config(config, windows, held_out)


def init_or_restore(setup: Setup, restored: CheckpointState | None, clock: Clock, report: Report) -> tuple[State, int]:
    """State and data position at the start: restored, or initialised (with a pre-trained encoder if one is named)."""
    seconds = restored.seconds if restored else {}
    if signs := LifeSigns.read(setup.workdir):
        clock.restore(seconds, signs)
    if restored:
        step = int(restored.state.step)
        report("resumed", f"resumes from checkpoint {step} after {sum(seconds.values()):.0f} s of training", step=step)
        return restored.state, restored.position
    with clock.measure("compile"):
        state = setup.program.init()
    origin = setup.config.model.encoder_from
    if origin:
        state = with_encoder_of(state, origin, setup.config)
    report("started", "starts" + (f" from the encoder of {origin}" if origin else " from random parameters"), step=0)
    return state, 0


def validate(validation_step: TimedJit, params: Any, batches: DeviceBatches) -> dict[str, float]:
    """Means of the metrics over the validation batches, some weighted by `loss_weight` (`is_weighted`)."""
    results = [validation_step(params, batch) for batch in batches.validation()]
    fetched = [{name: float(value) for name, value in result.items()} for result in jax.device_get(results)]
    weights = [result.get(LOSS_WEIGHT, 1.0) for result in fetched]

    def mean(name: str) -> float:
        values = [result[name] for result in fetched]
        if not is_weighted(name):
            return sum(values) / len(values)
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / (sum(weights) or 1.0)

    return {f"validation_{name}": mean(name) for name in fetched[0] if not is_sum(name)}


def collapse_warning(metrics: Mapping[str, float]) -> str:
    """A sentence if the encoder maps different validation windows to nearly the same vector; empty otherwise."""
    cosine = metrics.get("validation_window_cosine", 0.0)
    if not cosine >= _COLLAPSED_COSINE:  # NaN is another fault
        return ""
    return (
        f"WARNING: the encoder's representations of different windows have a mean cosine of {cosine:.4f}: it is "
        "collapsing. Lower optimizer.learning_rate, or see what it contributes: `lsm evaluate --suite generative`."
    )


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX has been given another one."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "lsm_jax" / "compiled"))


def overview(config: Config, spec: DataSpec, objective: Objective, program: Program, schedule: TrainSchedule) -> str:
    """The first lines of a run: parameters, implementations, devices, data and length."""
    parts = {"objective": config.objective.name, "optimizer": config.optimizer.name}
    parts |= dict(objective.implementations)
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    devices = jax.devices()
    lines = [
        sharding_table(program.mesh.shape, program.shapes.params),
        ", ".join(f"{part}: {name}" for part, name in parts.items()),
        f"{len(devices)} x {devices[0].device_kind}, mesh {axes}, {jax.process_count()} processes",
        f"{schedule.epoch} training windows of {len(spec.channels)} channels; {schedule.total} steps of "
        f"{schedule.batch_size} windows",
    ]
    return "\n".join(lines)


def summary(step: int, total: int, workdir: Path, seconds: Mapping[str, float], skipped: int) -> str:
    """The last sentence of a run: how it ended, steps that were skipped, and the share of time of each bucket."""
    wall = sum(seconds.values())
    shares = ", ".join(f"{bucket} {value / wall:.0%}" for bucket, value in seconds.items() if value >= 0.005 * wall)
    how = "finished" if step >= total else f"stopped early; the same command resumes it up to {total}"
    were = "1 step was" if skipped == 1 else f"{skipped} steps were"
    bad = f"; {were} skipped (see bad_step in {EVENTS})" if skipped else ""
    return f"step {step}: {how}{bad}. {wall:.0f} s: {shares}. Run folder: {workdir}"
