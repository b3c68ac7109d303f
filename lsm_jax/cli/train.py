"""`lsm train`: pre-trains a model; run again it resumes."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import folder_or_url

HELP = "pre-train; the same command run again resumes"
EXAMPLE = "lsm train --config configs/lsm2.py:small --workdir runs/first --config.data.paths=data/synth"
ACCEPTS_OVERRIDES = True

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm train`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]",
        help="configuration; the options --config.KEY=VALUE below change it",
    )  # fmt: skip
    parser.add_argument("--workdir", type=folder_or_url, required=True, metavar="W", help="folder of the run")
    parser.add_argument(
        "--preempted-exit-code", type=int, default=PREEMPTED, metavar="CODE",
        help=f"exit code of a run that was asked to stop and has saved (default {PREEMPTED}: start it again)",
    )  # fmt: skip
    parser.add_argument(
        "--start-over", action="store_true",
        help="begin again at step 0; earlier checkpoints and metrics are kept in W/earlier-N",
    )  # fmt: skip
    several = parser.add_argument_group("several processes", "TPU pods and SLURM are recognised without these.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, the same for all")
    several.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")
    several.add_argument("--process-count", type=int, metavar="N", help="how many there are")
    several.add_argument(
        "--join-timeout", type=int, default=600, metavar="S", help="seconds to wait for all of them (default 600)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, and reports progress on standard error."""
    from lsm_jax.config import load_config
    from lsm_jax.errors import Preempted
    from lsm_jax.evals import evaluators
    from lsm_jax.train import processes
    from lsm_jax.train.loop import train
    from lsm_jax.train.mesh import cpu_devices_for, use_cores
    from lsm_jax.train.timing import process_started

    config = load_config(args.config, args.overrides)
    # Both must come before anything asks for a device.
    processes.initialise(args.coordinator, args.process_id, args.process_count, args.join_timeout)
    use_cores(cpu_devices_for(config))
    try:
        train(config, args.workdir, evaluators(config), process_started(), args.start_over)
    except Preempted:
        return int(args.preempted_exit_code)
    return 0
