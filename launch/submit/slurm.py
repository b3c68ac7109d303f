"""launch/slurm: a run as a SLURM job that goes on after preemptions, time limits and lost nodes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from command import Request, add_restarts, launcher_parser, main, read_request, summary

from lsm_jax.errors import UserError

BATCH_SCRIPT = Path(__file__).resolve().parents[1] / "train.sbatch"


def run(words: Sequence[str]) -> int:
    """Submits the job, or prints the command that would."""
    parser = launcher_parser(
        "slurm",
        "Submits a run to SLURM, one process per GPU. Options that are not listed are sbatch's. The topology\n"
        "cpu:NODESxPROCESSES is for nodes without accelerators.",
        "launch/slurm h100:4x8 --time=24:00:00 -- --config configs/lsm2.py:base --workdir shared/runs/base",
    )
    add_restarts(parser, 3, "failures without a new checkpoint in between are restarted; preemptions always are")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="where logs go; all nodes must see it (WORKDIR/logs)")
    request = read_request(parser, words, engine_options=True, cpu=True)
    command = sbatch_command(request)
    if request.args.dry_run:
        print(summary(request), shlex.join(command), sep="\n")
        return 0
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here; run this on a node of the cluster from which jobs are submitted.")
    logs_folder(request).mkdir(parents=True, exist_ok=True)
    return subprocess.run(command, check=False).returncode


def sbatch_command(request: Request) -> list[str]:
    """The command that submits the run."""
    pod, logs = request.pod, logs_folder(request)
    command = ["sbatch", f"--job-name={request.args.name or request.workdir}", "--dependency=singleton"]
    command += [f"--nodes={pod.hosts}", f"--ntasks-per-node={pod.chips_per_host}"]
    if pod.kind != "cpu":
        command.append(f"--gpus-per-node={pod.chips_per_host}")
    command += [f"--output={logs}/%j.log", *request.engine_options, str(BATCH_SCRIPT)]
    # The environment of this checkout, which the nodes see as well.
    lsm = Path(sys.executable).with_name("lsm")
    return [*command, request.workdir, str(logs), str(request.args.restarts), str(lsm), "train", *request.train]


def logs_folder(request: Request) -> Path:
    """Where the job and its processes write; UserError if that would be in an object store."""
    if request.args.logs:
        return Path(request.args.logs)
    if "://" in request.workdir:
        raise UserError(f"SLURM cannot write logs into {request.workdir}; name a folder with --logs.")
    return Path(request.workdir) / "logs"


if __name__ == "__main__":
    main(run)
