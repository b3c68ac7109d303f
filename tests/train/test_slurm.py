"""`launch/slurm` on a real SLURM: its daemons on this machine, the shipped batch script, preemption and requeue."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import short_training

from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import load_run

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed (apt-get install slurm-wlm munge): {MISSING}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

# Two partitions on one node of two processors; a job in `urgent` preempts those in `main`.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=300
ReturnToService=2
FirstJobId={first_job}
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 900) -> None:
    """Waits for something that SLURM or a run does; a timeout is for what hangs."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


class Cluster:
    """A SLURM of one node; `environment` makes its commands find it."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str | Path) -> str:
        """What a command prints; an AssertionError with its errors if it fails."""
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def wait_for_node(self) -> None:
        """Waits until the daemons answer and the node is ready."""
        command = ["sinfo", "--noheader", "--format=%T"]

        def idle() -> bool:
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
            return done.stdout.strip() == "idle"

        wait_until(idle, "the node is idle", 60)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, state: str) -> None:
        """Waits until a job is in a state; an AssertionError with its logs if it ended otherwise."""

        def reached() -> bool:
            now = self.job(number)["JobState"]
            logs = [path.read_text()[-3000:] for path in sorted(self.runs.rglob(f"logs/{number}*.log"))]
            assert now not in {"FAILED", "CANCELLED", "NODE_FAIL", "COMPLETED"} - {state}, "\n".join([now, *logs])
            daemon = (self.folder / "slurmd.log").read_text()
            assert "fatal" not in daemon, daemon[-3000:]
            return now == state

        wait_until(reached, f"job {number} is {state}")

    def start_soon(self, number: str, start: int) -> None:
        """Lets a requeued job start for the n-th time. It would wait two minutes.

        A start within the second of the requeue would fail: the old start's credential is revoked by time.
        """
        again = 0.0

        def started() -> bool:
            nonlocal again
            job, soon = self.job(number), dt.datetime.now() + dt.timedelta(minutes=1)
            if job["Reason"] == "BeginTime" and job["StartTime"] > f"{soon:%FT%T}" and time.monotonic() > again:
                # Not at every look: the time to start must come in between.
                again = time.monotonic() + 20
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now+4seconds")
            assert job["JobState"] != "FAILED", job
            return f"start {start} on" in Path(job["StdOut"]).read_text()

        wait_until(started, f"start {start} of job {number}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A running SLURM."""
    # Its sockets have names of at most 107 bytes, which a folder of pytest's can be too long for.
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    for each in (folder / "state", folder / "spool"):
        each.mkdir()
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    controller, daemon = free_ports(2)
    # JAX takes the port of its coordinator from the number of the job.
    settings = {"host": host, "folder": folder, "controller": controller, "daemon": daemon}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings, first_job=os.getpid() % 3000 + 1))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    cluster = Cluster(folder, tmp_path)
    names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    files = [f"--{option}={folder / name}" for option, name in {**names, "seed-file": "munge.seed"}.items()]
    daemons = [["munged", "--foreground", "--force", *files], ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]]
    processes = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("w") as out:
                processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=cluster.environment))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munge answers", 30)
        cluster.wait_for_node()
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root"], env=cluster.environment, check=False)
        for process in reversed(processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(folder)


def test_a_preempted_and_requeued_job_ends_with_the_undisturbed_runs_numbers(
    cluster: Cluster, half_hours: Path, tmp_path: Path
) -> None:
    def submit(workdir: Path) -> str:
        settings = ["train.duration=60 steps", "train.log_every=1 steps", "train.grad_accum_steps=1"]
        settings += ["evaluate.every=20 steps", "checkpoint.every=20 steps", f"data.paths={half_hours}"]
        train = [f"--config={short_training.__file__}", f"--workdir={workdir}"]
        train += [f"--config.{setting}" for setting in settings]
        launcher = [sys.executable, REPOSITORY / "launch" / "submit" / "slurm.py", "cpu:1x2", "--parsable"]
        return cluster.run(*launcher, f"--chdir={REPOSITORY}", "--", *train)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = submit(whole)
    cluster.wait_for(undisturbed, "COMPLETED")

    job = submit(cut)
    wait_until(lambda: bool(read_metrics(cut)), f"the first metrics of {cut}")
    # The processes stand still, so that the run cannot end first. SLURM lets them go on when it asks them to stop.
    cluster.run("scancel", "--signal=STOP", job)
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--ntasks=2", "--wrap=true")
    cluster.wait_for(urgent, "COMPLETED")
    cluster.start_soon(job, 2)
    steps = len(read_metrics(cut))
    wait_until(lambda: len(read_metrics(cut)) > steps, "metrics of the second start")
    cluster.run("scancel", "--signal=STOP", job)
    cluster.run("scontrol", "requeue", job)
    cluster.start_soon(job, 3)
    cluster.wait_for(job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "2"

    log = (cut / "logs" / f"{job}.log").read_text()
    assert log.count("preempted and saved") == 2, log
    assert log.count(f"job {job}: finished") == 1, log
    for number in range(2):
        assert (cut / "logs" / f"{job}-{number}.log").stat().st_size > 0
    expected, metrics = read_metrics(whole), read_metrics(cut)
    for name in ("loss", "validation_loss", "gradient_norm", "tokens_visible"):
        values = [[(record["step"], record[name]) for record in run if name in record] for run in (expected, metrics)]
        assert values[0], name
        assert values[0] == values[1], name
    one, other = load_run(whole), load_run(cut)
    assert one.step == other.step == 60
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_a_cancelled_job_saves_and_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    saves = tmp_path / "saves"
    saves.write_text(f"#!/bin/bash\ntrap 'exit 75' TERM\ntouch {tmp_path}/runs\nwhile :; do sleep 0.1; done\n")
    saves.chmod(0o755)
    script = [REPOSITORY / "launch" / "train.sbatch", tmp_path, tmp_path, "3", saves]
    job = cluster.run("sbatch", "--parsable", f"--output={tmp_path}/%j.log", *script)
    wait_until((tmp_path / "runs").exists, "the job runs", 60)
    cluster.run("scancel", job)
    wait_until(lambda: cluster.job(job)["JobState"] not in {"RUNNING", "COMPLETING"}, "the job ends", 60)
    assert cluster.job(job)["JobState"] == "CANCELLED", (tmp_path / f"{job}.log").read_text()
    assert "cancelled: not queued again" in (tmp_path / f"{job}.log").read_text()
