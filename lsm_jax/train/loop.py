"""The one training loop.

Its order is a promise: evaluate on the old parameters, save, and only then fetch the next batch. What is saved
together therefore belongs together: parameters, optimizer, randomness, the position in the data and the clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from clu import parameter_overview
from jax.experimental import multihost_utils

from lsm_jax import objectives
from lsm_jax.config import Config
from lsm_jax.data.loader import Loader
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, data_spec, datasets_with_weight, open_datasets
from lsm_jax.data.store import Dataset
from lsm_jax.data.text import CaptionTokens, check_held_out_activities
from lsm_jax.errors import RunError, UserError
from lsm_jax.objectives import Objective
from lsm_jax.train.checkpoints import Checkpoints, Saved
from lsm_jax.train.clock import Clock
from lsm_jax.train.compiler_options import compiler_options
from lsm_jax.train.duration import Schedule
from lsm_jax.train.flops import total_peak
from lsm_jax.train.mesh import check_sizes, loader_share, make_mesh, to_devices
from lsm_jax.train.metrics import MetricsLog, Terminal, seconds_reached
from lsm_jax.train.state import LOSS_WEIGHT, Program, State, averaged, is_sum, make_program
from lsm_jax.train.warm_start import normalised_as_before, with_encoder_of
from lsm_jax.train.workdir import (
    CHECKPOINTS,
    check_same,
    check_same_data,
    run_captions,
    write_config,
    write_trained_on,
)


def train(config: Config, workdir: Path | str) -> int:
    """Trains for `train.duration`; run again, it goes on where it was.

    SIGTERM, Ctrl-C and a lost terminal save and end it early. All processes of a distributed run call this.

    Args:
      config: from `load_config`.
      workdir: gets `config.json`, `spec.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`.

    Returns:
      The steps taken in all.

    Raises:
      UserError: a setting, the data, or a workdir of another configuration.
      RunError: the gradient was not finite for `train.max_nonfinite_steps` steps in a row.
    """
    clock, workdir, first = Clock(), Path(workdir), jax.process_index() == 0
    check_same(workdir, config)
    use_compile_cache()
    datasets = open_datasets(config.data)
    spec = data_spec(config.data, datasets)
    if config.language.encoder_from:
        spec = normalised_as_before(spec, workdir, config)
    check_same_data(workdir, spec)
    objective = objectives.build(config, spec)
    captions = run_captions(workdir, config)
    check_held_out_activities(config.language.held_out_activities, datasets)
    plan = Plan.of(config, datasets)
    program = make_program(config, objective, make_mesh(config.mesh), plan.schedule)
    if first:
        write_config(workdir, config, spec, captions)
        write_trained_on(workdir, datasets_with_weight(config.data, datasets))

    with contextlib.ExitStack() as ending:
        terminal = Terminal(plan.total, speaks=first)
        ending.callback(terminal.close)
        terminal.say(overview(config, spec, objective, program, plan))
        checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep, terminal.say)
        ending.callback(checkpoints.close)
        restored = checkpoints.restore_latest(program.shapes)
        state, position = begin(config, program, restored, workdir, clock, terminal)
        step = start = int(state.step)
        data = ending.enter_context(contextlib.closing(Data(config, datasets, spec, program, plan, position, captions)))
        step_once, evaluate = Compiled(program.step, clock), Compiled(program.evaluate, clock)
        log = MetricsLog(workdir, start if restored else -1) if first else None
        records = ending.enter_context(Records(config, clock, plan, log, terminal, skipped=float(state.skipped)))
        trace = ending.enter_context(contextlib.closing(Trace(config.train.profile_steps, workdir)))
        stop = ending.enter_context(StopRequest())
        while True:
            over, asked = step >= plan.total, stop.asked(step)
            # A checkpoint is saved after its evaluation, so what was restored has both behind it.
            if step > start or not restored:
                if plan.evaluates(step):
                    records.write_pending()
                    with clock.measure("evaluate"):
                        records.write_validation(step, validate(evaluate, averaged(state), data))
                if step > 0 and (over or asked or plan.saves(step)):
                    records.write_pending()
                    with clock.measure("checkpoint"):
                        checkpoints.save(Saved(state, data.position, clock.seconds()))
            if over or asked:
                break
            with clock.measure("input"):
                batch = data.next_training()
            trace.before(step)
            with clock.measure("step"):
                state, metrics = step_once(state, batch)
            step += 1
            # The device is busy with this step while the one before is fetched and written.
            records.write_late(step, metrics)
            trace.after(step)
        records.write_pending()
        with clock.measure("checkpoint"):
            checkpoints.close()
    terminal.say(ended(step, plan.total, workdir, clock))
    return step


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in steps; 0 is never.

    Attributes:
      schedule: turns durations into steps.
      validation_batches: batches of the validation split an evaluation takes.
    """

    schedule: Schedule
    total: int
    log_every: int
    save_every: int
    evaluate_every: int
    validation_batches: int

    @classmethod
    def of(cls, config: Config, datasets: Sequence[Dataset]) -> Plan:
        """Reads the durations of a configuration; UserError where one is none."""
        check_sizes(config)
        datasets = datasets_with_weight(config.data, datasets)
        epoch, held_out = (sum(len(dataset.source(split)) for dataset in datasets) for split in ("train", "validation"))
        schedule = Schedule.of(config, epoch)
        return cls(
            schedule=schedule,
            total=schedule.total or 0,
            log_every=schedule.steps("train.log_every", config.train.log_every),
            save_every=schedule.steps("checkpoint.every", config.checkpoint.every),
            evaluate_every=schedule.steps("evaluate.every", config.evaluate.every),
            validation_batches=min(config.evaluate.batches, math.ceil(held_out / config.train.batch_size) or 1),
        )

    def logs(self, step: int) -> bool:
        return step == self.total or (self.log_every > 0 and step % self.log_every == 0)

    def saves(self, step: int) -> bool:
        return self.save_every > 0 and step % self.save_every == 0

    def evaluates(self, step: int) -> bool:
        return (
            self.evaluate_every > 0
            and self.validation_batches > 0
            and (step % self.evaluate_every == 0 or step == self.total)
        )


def begin(
    config: Config, program: Program, restored: Saved | None, workdir: Path, clock: Clock, terminal: Terminal
) -> tuple[State, int]:
    """The state and data position to start from: restored ones, or newborn, with another run's encoder if asked for."""
    reached = seconds_reached(workdir)
    if restored is None:
        clock.restore({}, lost=reached)
        with clock.measure("compile"):
            state = program.init()
        if config.language.encoder_from:
            state = with_encoder_of(state, config.language.encoder_from)
            terminal.say(f"starts from the encoder of {config.language.encoder_from}")
        return state, 0
    saved = sum(restored.seconds.values())
    clock.restore(restored.seconds, lost=max(reached - saved, 0.0))
    terminal.say(f"goes on from checkpoint {int(restored.state.step)} after {saved:.0f} s of training")
    return restored.state, restored.position


class Data:
    """Training batches from a position on, and the validation batches, always the same, on the devices."""

    def __init__(
        self,
        config: Config,
        datasets: Sequence[Dataset],
        spec: DataSpec,
        program: Program,
        plan: Plan,
        position: int,
        captions: CaptionTokens | None,
    ) -> None:
        self._mesh, self._size = program.mesh, config.train.batch_size
        self._share = loader_share(self._mesh, self._size)
        self._loader = functools.partial(Loader, config.data, datasets, spec, seed=config.seed)
        # Whole days, all of them, are what a run is judged on, however it learns.
        whole = captions and dataclasses.replace(captions, event_crop_prob=0.0, held_out_activities=())
        self._captions = {"train": captions, "validation": whole}
        # An evaluation takes its batch at once, whatever training does.
        at_once = RowBalancer.for_batch(self._size, config.rows.windows_per_row, grad_accum_steps=1)
        self._balance = {"train": RowBalancer.from_config(config), "validation": at_once}
        self._training = self._load("train", position)
        self._validation: Loader | None = None
        self._validation_batches = plan.validation_batches

    @property
    def position(self) -> int:
        """The training loader's one integer of state."""
        return self._training.position

    def next_training(self) -> Mapping[str, jax.Array]:
        return to_devices(self._mesh, next(self._training), self._size)

    def validation(self) -> Iterator[Mapping[str, jax.Array]]:
        """The first batches of the validation split."""
        if self._validation is None:
            self._validation = self._load("validation", 0)
        elif self._validation.position:
            self._validation.restore(0)
        for _ in range(self._validation_batches):
            yield to_devices(self._mesh, next(self._validation), self._size)

    def _load(self, split: str, position: int) -> Loader:
        index, count = self._share
        return self._loader(
            split,
            batch_size=self._size,
            position=position,
            process_index=index,
            process_count=count,
            captions=self._captions[split],
            balance=self._balance[split],
        )

    def close(self) -> None:
        for loader in (self._training, self._validation):
            if loader is not None:
                loader.close()


def validate(evaluate: Compiled, params: Any, data: Data) -> dict[str, float]:
    """Mean metrics over the validation batches, the loss weighted as within a batch."""
    results = [evaluate(params, batch) for batch in data.validation()]
    fetched = [{name: float(value) for name, value in result.items()} for result in jax.device_get(results)]
    weights = [result.get(LOSS_WEIGHT, 1.0) for result in fetched]
    means = {
        f"validation_{name}": sum(result[name] for result in fetched) / len(fetched)
        for name in fetched[0]
        if not is_sum(name)
    }
    total = sum(weight * result["loss"] for weight, result in zip(weights, fetched, strict=True))
    return means | {"validation_loss": total / (sum(weights) or 1.0)}


class Compiled:
    """A jitted function, compiled at its first call, which is a bucket of the clock of its own."""

    def __init__(self, function: Any, clock: Clock) -> None:
        self._function, self._clock = function, clock
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            with self._clock.measure("compile"):
                options = compiler_options(jax.default_backend()) or None
                self._compiled = self._function.lower(*arguments).compile(compiler_options=options)
        return self._compiled(*arguments)


class Records(contextlib.AbstractContextManager["Records"]):
    """Metrics: fetched one step late, checked, and written when due with the speed since the last record."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        plan: Plan,
        log: MetricsLog | None,
        terminal: Terminal,
        skipped: float = 0.0,
    ) -> None:
        self._clock, self._plan, self._log, self._terminal = clock, plan, log, terminal
        self._batch_size, self._most_skipped = config.train.batch_size, config.train.max_nonfinite_steps
        self._peak, origin = total_peak(config.train.peak_flops)
        terminal.say(f"peak for MFU: {self._peak / 1e12:.3g} TFLOP/s ({origin})")
        self._pending: tuple[int, Any] | None = None
        self._skipped, self._skipped_in_row = skipped, 0
        self._since_last()

    def write_late(self, step: int, metrics: Any) -> None:
        """Takes the metrics of `step`, which may still run, and writes those of the step before."""
        self.write_pending()
        self._pending = (step, metrics)

    def write_pending(self) -> None:
        """Waits for the step last given and writes its metrics if they are due."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        with self._clock.measure("step"):
            fetched = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._steps += 1
        self._useful_flops += fetched.get("useful_flops", 0.0)
        self._check_finite(step, fetched)
        if self._plan.logs(step):
            self._write(step, fetched | self._rates() | {"time": self._clock.seconds()})
            self._since_last()

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a validation record."""
        self._write(step, metrics)
        loss = metrics["validation_loss"]
        self._terminal.say(f"step {step}: validation loss {loss:.5g}")

    def __exit__(self, *_: object) -> None:
        if self._log:
            self._log.close()

    def _write(self, step: int, record: Mapping[str, Any]) -> None:
        if self._log:
            self._log.write(step, record)
        if "loss" in record:
            rate, mfu = record["windows_per_second"], record["mfu"]
            self._terminal.show(step, f"loss {record['loss']:.4f}, {rate:.3g} windows/s, MFU {mfu:.1%}")

    def _check_finite(self, step: int, fetched: Mapping[str, float]) -> None:
        self._skipped_in_row = self._skipped_in_row + 1 if fetched["skipped"] > self._skipped else 0
        self._skipped = fetched["skipped"]
        if self._skipped_in_row >= self._most_skipped > 0:
            raise RunError(
                f"step {step}: loss or gradient has not been finite for {self._skipped_in_row} steps in a row. Lower "
                "optimizer.learning_rate or optimizer.clip_norm, or look for impossible values with `lsm inspect`; the "
                "last checkpoint is from before."
            )

    def _since_last(self) -> None:
        self._steps, self._useful_flops, self._last = 0, 0.0, self._clock.seconds()

    def _rates(self) -> dict[str, float]:
        """Speed since the last record; what evaluations, checkpoints and compilation took is not part of it."""
        now = self._clock.seconds()
        spent = {bucket: now[bucket] - self._last[bucket] for bucket in ("step", "input", "other")}
        seconds = max(sum(spent.values()), 1e-9)
        return {
            "windows_per_second": self._steps * self._batch_size / seconds,
            "mfu": self._useful_flops / seconds / self._peak,
            "input_wait": spent["input"] / seconds,
            "goodput": now["step"] / max(sum(now.values()), 1e-9),
        }


class StopRequest(contextlib.AbstractContextManager["StopRequest"]):
    """SIGTERM, Ctrl-C or a lost terminal, heard between steps; a second Ctrl-C ends the process at once.

    Several processes must agree on the step to stop at. JAX's coordination service sees to that, and listens for
    SIGTERM, which is what the other two become then.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            wanted = {signal.SIGINT} if jax.process_count() > 1 else {signal.SIGINT, signal.SIGTERM}
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
                wanted.add(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._hear) for number in wanted}
        return self

    def asked(self, step: int) -> bool:
        """Whether to end before this step; the same answer on all processes."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._asked

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Trace:
    """A profile of the steps `(first, last)` of the configuration, for TensorBoard's profile page."""

    def __init__(self, steps: tuple[int, ...], workdir: Path) -> None:
        if len(steps) not in {0, 2}:
            raise UserError(f"train.profile_steps={steps} must be two steps, first and last.")
        self._first, self._last = steps or (-1, -1)
        self._folder, self._running = workdir / "profile", False

    def before(self, step: int) -> None:
        """Called before the step after `step` steps."""
        if step + 1 == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int) -> None:
        """Called once `step` steps have been started."""
        if step >= self._last:
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of another place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "lsm_jax" / "compiled"))


def overview(config: Config, spec: DataSpec, objective: Objective, program: Program, plan: Plan) -> str:
    """What is about to run: parameters, implementations, devices, data and length."""
    table = parameter_overview.get_parameter_overview(program.shapes.params, include_stats="sharding")
    chosen = {"objective": config.objective.name, "optimizer": config.optimizer.name}
    chosen |= dict(getattr(objective, "implementations", {}))
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    devices = jax.devices()
    lines = [
        str(table),
        ", ".join(f"{part}: {name}" for part, name in chosen.items()),
        f"{len(devices)} x {devices[0].device_kind}, mesh {axes}, {jax.process_count()} processes",
        f"{plan.schedule.epoch} training windows of {len(spec.channels)} channels; {plan.total} steps of "
        f"{plan.schedule.batch_size} windows",
    ]
    return "\n".join(lines)


def ended(step: int, total: int, workdir: Path, clock: Clock) -> str:
    """The last sentence of a run, and where its time went."""
    seconds = clock.seconds()
    wall = sum(seconds.values())
    shares = ", ".join(f"{bucket} {value / wall:.0%}" for bucket, value in seconds.items() if value >= 0.005 * wall)
    how = "finished" if step >= total else f"stopped early; the same command goes on to {total}"
    return f"step {step}: {how}. {wall:.0f} s: {shares}. Run folder: {workdir}"
