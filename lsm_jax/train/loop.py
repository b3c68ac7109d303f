"""The training loop.

At each step it evaluates the current parameters, saves, then fetches a batch and updates. This order is guaranteed, so
everything in a checkpoint is of the same moment: parameters, optimizer state, random state, data position and clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from lsm_jax import objectives
from lsm_jax.config import Config
from lsm_jax.data.loader import Loader
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, data_spec, datasets_with_weight, open_datasets
from lsm_jax.data.store import Dataset
from lsm_jax.data.text import CaptionTokens, check_held_out_activities
from lsm_jax.errors import UserError
from lsm_jax.events import EventLog, Report, event_file
from lsm_jax.objectives import Objective
from lsm_jax.train.checkpoints import Checkpoints, CheckpointState
from lsm_jax.train.evaluators import Evaluator, run_evaluators
from lsm_jax.train.mesh import check_sizes, loader_share, make_mesh, to_devices
from lsm_jax.train.metrics import MetricsLog, MetricsRecorder, ProgressReporter, wall_seconds
from lsm_jax.train.processes import PreemptionHandler
from lsm_jax.train.run import Run, keep_normalisation, with_encoder_of
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import LOSS_WEIGHT, Program, State, averaged, is_sum, make_program, on_first_device
from lsm_jax.train.timing import Clock, TimedJit, Trace
from lsm_jax.train.workdir import (
    CHECKPOINTS,
    EVALUATIONS,
    check_same,
    check_same_data,
    run_captions,
    write_config,
    write_trained_on,
)

_COLLAPSED_COSINE = 0.98  # of the windows' mean tokens


def train(config: Config, workdir: Path | str, evaluators: Sequence[Evaluator] = ()) -> int:
    """Trains for `train.duration`. Called again, it resumes from the newest checkpoint.

    SIGTERM, Ctrl-C and a lost terminal save a checkpoint and end it early. All processes of a distributed run call
    this.

    Args:
      config: from `load_config`.
      workdir: gets `config.json`, `spec.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and `eval/`.
      evaluators: run every `evaluate.suites_every`; those of `evaluate.suites` are `lsm_jax.evals.evaluators(config)`.

    Returns:
      The steps taken in all.

    Raises:
      UserError: a setting or the data is refused, or the workdir belongs to another configuration.
      RunError: the gradient was not finite for `train.max_nonfinite_steps` steps in a row.
    """
    clock, workdir, is_lead_host = Clock(), Path(workdir), jax.process_index() == 0
    check_same(workdir, config)
    use_compile_cache()
    datasets = open_datasets(config.data)
    spec = data_spec(config.data, datasets)
    if config.language.encoder_from:
        spec = keep_normalisation(spec, workdir, config)
    check_same_data(workdir, spec)
    objective = objectives.build(config, spec)
    captions = run_captions(workdir, config)
    check_held_out_activities(config.language.held_out_activities, datasets)
    schedule = make_schedule(config, datasets)
    program = make_program(config, objective, make_mesh(config.mesh), schedule)
    if missing := {*config.evaluate.suites} - {evaluator.name for evaluator in evaluators}:
        raise UserError(f"evaluate.suites: no evaluator {', '.join(sorted(missing))} was given to train().")
    if is_lead_host:
        write_config(workdir, config, spec, captions)
        write_trained_on(workdir, datasets_with_weight(config.data, datasets))

    with contextlib.ExitStack() as stack:
        reporter = ProgressReporter(schedule.total, enabled=is_lead_host)
        stack.callback(reporter.close)
        process = jax.process_index()
        report = EventLog(event_file(workdir, process), process, reporter.message).report
        reporter.message(overview(config, spec, objective, program, schedule))
        checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep, reporter.message)
        stack.callback(checkpoints.close)
        restored = checkpoints.restore_latest(program.shapes)
        state, position = init_or_restore(config, program, restored, workdir, clock, report)
        step = start = int(state.step)
        batches = DeviceBatches(config, datasets, spec, program, schedule, captions, position)
        stack.callback(batches.close)
        train_step, validation_step = TimedJit(program.step, clock), TimedJit(program.evaluate, clock)
        log = MetricsLog(workdir, start if restored else -1) if is_lead_host else None
        recorder = MetricsRecorder(config, clock, schedule, log, reporter, skipped=float(state.skipped))
        stack.enter_context(recorder)
        trace = stack.enter_context(contextlib.closing(Trace(config.train.profile_steps, workdir)))
        preemption = stack.enter_context(PreemptionHandler())
        while True:
            last = step >= schedule.total or preemption.should_stop(step)
            # A checkpoint is saved after the evaluations of its step: a restored step needs neither again.
            if step > start or not restored:
                if schedule.evaluates(step):
                    recorder.write_pending()
                    with clock.measure("evaluate"):
                        metrics = validate(validation_step, averaged(state), batches)
                        recorder.write(step, metrics)
                    reporter.message(f"step {step}: validation loss {metrics['validation_loss']:.5g}")
                    if warning := collapse_warning(metrics):
                        reporter.message(f"step {step}: {warning}")
                if evaluators and schedule.runs_suites(step):
                    recorder.write_pending()
                    with clock.measure("evaluate"):
                        params = on_first_device(averaged(state), program.mesh)
                        minutes = sum(clock.seconds().values()) / 60
                        tokenizer = captions.tokenizer if captions else None
                        run = Run(config, spec, objective, params, step, minutes, tokenizer)
                        folder = workdir / EVALUATIONS / f"step-{step}" if is_lead_host else None
                        recorder.write(step, run_evaluators(evaluators, run, datasets, folder))
                if step > 0 and (last or schedule.saves(step)):
                    recorder.write_pending()
                    with clock.measure("checkpoint"):
                        checkpoints.save(CheckpointState(state, batches.position, clock.seconds()))
            if last:
                break
            with clock.measure("input"):
                batch = batches.next_training()
            trace.before(step)
            with clock.measure("step"):
                state, metrics = train_step(state, batch)
            step += 1
            # While the device runs this step, the host fetches and writes the metrics of the step before.
            recorder.write_late(step, metrics)
            trace.after(step)
        recorder.write_pending()
        with clock.measure("checkpoint"):
            checkpoints.close()
    report(
        "finished" if step >= schedule.total else "preempted", summary(step, schedule.total, workdir, clock), step=step
    )
    return step


def make_schedule(config: Config, datasets: Sequence[Dataset]) -> TrainSchedule:
    """The schedule of a run on these datasets; UserError where a size or duration is refused."""
    check_sizes(config)
    sampled = datasets_with_weight(config.data, datasets)
    windows, held_out = (sum(len(dataset.source(split)) for dataset in sampled) for split in ("train", "validation"))
    return TrainSchedule.from_config(config, windows, held_out)


def init_or_restore(
    config: Config,
    program: Program,
    restored: CheckpointState | None,
    workdir: Path,
    clock: Clock,
    report: Report,
) -> tuple[State, int]:
    """State and data position at the start: restored, or initialised (with a pre-trained encoder if one is named)."""
    reached = wall_seconds(workdir)
    if restored is None:
        clock.restore({}, lost=reached)
        with clock.measure("compile"):
            state = program.init()
        if config.language.encoder_from:
            state = with_encoder_of(state, config.language.encoder_from)
            report("started", f"starts from the encoder of {config.language.encoder_from}", step=0)
        return state, 0
    saved = sum(restored.seconds.values())
    clock.restore(restored.seconds, lost=max(reached - saved, 0.0))
    step = int(restored.state.step)
    report("resumed", f"resumes from checkpoint {step} after {saved:.0f} s of training", step=step)
    return restored.state, restored.position


class DeviceBatches:
    """Training batches from a data position on, and the validation batches, which are always the same.

    Args:
      position: training batches taken before.
    """

    def __init__(
        self,
        config: Config,
        datasets: Sequence[Dataset],
        spec: DataSpec,
        program: Program,
        schedule: TrainSchedule,
        captions: CaptionTokens | None,
        position: int,
    ) -> None:
        self._mesh, self._size = program.mesh, config.train.batch_size
        index, count = loader_share(self._mesh, self._size)
        load = functools.partial(
            Loader, config.data, datasets, spec, seed=config.seed, batch_size=self._size,
            process_index=index, process_count=count,
        )  # fmt: skip
        self._training = load("train", position=position, captions=captions, balance=RowBalancer.from_config(config))
        # Validation takes whole days, those with held-out activities too, and never accumulates.
        whole = dataclasses.replace(captions, event_crop_prob=0.0, held_out_activities=()) if captions else None
        balance = RowBalancer.for_batch(self._size, config.rows.windows_per_row, grad_accum_steps=1)
        self._load_validation = functools.partial(load, "validation", captions=whole, balance=balance)
        self._validation_batches = schedule.validation_batches

    @property
    def position(self) -> int:
        """Training batches taken so far: the loader's whole state."""
        return self._training.position

    def next_training(self) -> Mapping[str, jax.Array]:
        """The next training batch."""
        return to_devices(self._mesh, next(self._training), self._size)

    def validation(self) -> Iterator[Mapping[str, jax.Array]]:
        """The first batches of the validation split."""
        with contextlib.closing(self._load_validation()) as loader:
            for _ in range(self._validation_batches):
                yield to_devices(self._mesh, next(loader), self._size)

    def close(self) -> None:
        """Stops reading ahead."""
        self._training.close()


def validate(validation_step: TimedJit, params: Any, batches: DeviceBatches) -> dict[str, float]:
    """Means of the metrics over the validation batches; the loss is weighted by `loss_weight` where there is one."""
    results = [validation_step(params, batch) for batch in batches.validation()]
    fetched = [{name: float(value) for name, value in result.items()} for result in jax.device_get(results)]
    weights = [result.get(LOSS_WEIGHT, 1.0) for result in fetched]
    means = {
        f"validation_{name}": sum(result[name] for result in fetched) / len(fetched)
        for name in fetched[0]
        if not is_sum(name)
    }
    weighted_loss = sum(weight * result["loss"] for weight, result in zip(weights, fetched, strict=True))
    return means | {"validation_loss": weighted_loss / (sum(weights) or 1.0)}


def collapse_warning(metrics: Mapping[str, float]) -> str:
    """A sentence if the encoder maps different validation windows to nearly the same vector; empty otherwise."""
    cosine = metrics.get("validation_window_cosine", 0.0)
    if cosine < _COLLAPSED_COSINE:
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
    table = parameter_overview.get_parameter_overview(program.shapes.params, include_stats="sharding")
    parts = {"objective": config.objective.name, "optimizer": config.optimizer.name}
    parts |= dict(objective.implementations)
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    devices = jax.devices()
    lines = [
        str(table),
        ", ".join(f"{part}: {name}" for part, name in parts.items()),
        f"{len(devices)} x {devices[0].device_kind}, mesh {axes}, {jax.process_count()} processes",
        f"{schedule.epoch} training windows of {len(spec.channels)} channels; {schedule.total} steps of "
        f"{schedule.batch_size} windows",
    ]
    return "\n".join(lines)


def summary(step: int, total: int, workdir: Path, clock: Clock) -> str:
    """The last sentence of a run, with the share of time of each bucket."""
    seconds = clock.seconds()
    wall = sum(seconds.values())
    shares = ", ".join(f"{bucket} {value / wall:.0%}" for bucket, value in seconds.items() if value >= 0.005 * wall)
    how = "finished" if step >= total else f"stopped early; the same command resumes it up to {total}"
    return f"step {step}: {how}. {wall:.0f} s: {shares}. Run folder: {workdir}"
