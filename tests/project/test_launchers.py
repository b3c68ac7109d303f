"""`launch/slurm`, `launch/gke`, `launch/tpu-queued`: what they submit, against the published schemas and `lsm plan`."""

from __future__ import annotations

import http.server
import importlib
import json
import os
import re
import shlex
import stat
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pods
import pytest
import yaml
from test_documents import commands

from lsm_jax.config import MeshConfig, load_config
from lsm_jax.errors import UserError
from lsm_jax.tools.plan.topologies import EXAMPLES, GPUS, chip_named, installed, topology_devices
from lsm_jax.train.mesh import make_mesh

REPOSITORY = Path(__file__).resolve().parents[2]
TOPOLOGIES = [name for names in EXAMPLES.values() for name in names]
BASE = f"{REPOSITORY}/configs/lsm2.py:base"
CLOUD = ["--project=p", "--zone=z", "--image=registry/lsm:1"]


def dry_run(
    engine: str, capsys: pytest.CaptureFixture[str], *words: str, train: tuple[str, ...] = ()
) -> tuple[str, str]:
    """(summary, what would be submitted) of a launcher."""
    options = ["--config", BASE, "--workdir=gs://bucket/runs/base", "--config.train.batch_size=589824", *train]
    assert importlib.import_module(engine).run([*words, "--dry-run", "--", *options]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    return first, rest


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_hosts_devices_and_mesh_are_those_of_the_plan(name: str) -> None:
    machines = pods.pod(name)
    if not installed(machines.kind):
        pytest.skip(f"the compiler for {machines.kind} is not installed (launch/install pods)")
    devices = topology_devices(name)
    by_host = Counter(device.process_index for device in devices)
    per_chip = chip_named(machines.kind).devices
    assert (machines.hosts, machines.devices) == (len(by_host), len(devices))
    assert set(by_host.values()) == {machines.chips_per_host * per_chip}


def test_the_mesh_that_is_printed_is_the_one_that_the_plan_compiles_for(capsys: pytest.CaptureFixture[str]) -> None:
    if not installed("v5e"):
        pytest.skip("libtpu is not installed (launch/install pods)")
    for name, tensor in (("v5e:4x8", 1), ("v4:4x4x4", 4)):
        changes = ("--config.mesh.fsdp=4", f"--config.mesh.tensor={tensor}")
        summary, _ = dry_run("gke", capsys, name, "--image=i", train=changes)
        mesh = make_mesh(load_config(BASE, changes).mesh, topology_devices(name))
        assert summary.endswith("mesh slices=1, " + ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()))


def test_axes_that_need_a_physical_axis_of_chips_to_be_split_have_a_mesh() -> None:
    if not installed("v6e"):
        pytest.skip("libtpu is not installed (launch/install pods)")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), topology_devices("v6e:8x8"))
    assert dict(mesh.shape) == {"data": 8, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_job_sets_ask_for_the_hosts_and_chips_of_the_topology(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    slices = 1 if name.split(":")[0] in GPUS else 2
    _, text = dry_run("gke", capsys, name, "--image=i", f"--slices={slices}", "--spot", "--queue=q", "--mount=c:/data")
    manifest = yaml.safe_load(text)
    check_job_set(manifest)
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    machines = pods.pod(name, slices)
    (chips,) = container["resources"]["limits"].values()
    assert jobs["replicas"] == slices
    assert jobs["replicas"] * job["parallelism"] == machines.hosts
    assert job["completions"] == job["parallelism"]
    assert chips * machines.hosts * chip_named(machines.kind).devices == machines.devices
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    if machines.is_tpu:
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == name.partition(":")[2]
        assert "--config.mesh.slices=2" in container["command"]
        assert not [word for word in container["command"] if word.startswith("--process")]
    elif machines.hosts > 1:
        assert f"--process-count={machines.hosts}" in container["command"]


def test_runs_in_other_folders_of_one_name_are_other_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    def name(workdir: str, *words: str) -> str:
        # The last --workdir counts.
        _, text = dry_run("gke", capsys, "v5e:4x4", "--image=i", *words, train=(f"--workdir={workdir}",))
        return str(yaml.safe_load(text)["metadata"]["name"])

    first = name("gs://bucket/a/base")
    assert re.fullmatch(r"base-[0-9a-f]{6}", first)
    assert first == name("gs://bucket/a/base/") != name("gs://bucket/b/base")
    assert len(name("gs://bucket/" + 60 * "long")) == 40
    assert name("gs://bucket/b/base", "--name=mine") == "mine"


def test_a_claim_can_be_mounted_at_several_paths(capsys: pytest.CaptureFixture[str]) -> None:
    mounts = ["--mount=data:/data", "--mount=data:/runs", "--mount=more:/more"]
    _, text = dry_run("gke", capsys, "v5e:4x4", "--image=i", *mounts)
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    places = [(mount["name"], mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]]
    assert places[1:] == [("data", "/data"), ("data", "/runs"), ("more", "/more")]
    assert [volume["name"] for volume in pod["volumes"]][1:] == ["data", "more"]


def test_environment_variables_reach_the_container_as_they_were_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"XLA_FLAGS": "--a=1 --b='x y'", "MONEY": '$(HOME) $$ $x `id` "', "EMPTY": ""}
    options = [f"--env={name}={value}" for name, value in variables.items()]
    _, text = dry_run("gke", capsys, "v5e:4x4", "--image=i", *options)
    manifest = yaml.safe_load(text)
    check_job_set(manifest)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    # Kubernetes makes $ of $$.
    given = {entry["name"]: entry["value"].replace("$$", "$") for entry in pod["containers"][0]["env"]}
    assert given == variables
    assert {"name": "MONEY", "value": '$$(HOME) $$$$ $$x `id` "'} in pod["containers"][0]["env"]

    _, text = dry_run("tpu_queued", capsys, "v5e:4x4", *CLOUD, *options)
    assert boot(tmp_path, startup_script(text)) == 0
    program(tmp_path, "docker", f'printf "%s\\0" "$@" >{tmp_path}/words')
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", tmp_path / "lsm-train"], env={"PATH": path, "x": "y"}, check=True)
    words = (tmp_path / "words").read_text().split("\0")
    given = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--env")
    assert given == {"XDG_CACHE_HOME": "/cache"} | variables
    assert "lsm-cache:/cache" in words


def startup_script(request: str) -> str:
    """The script in what `launch/tpu-queued --dry-run` prints."""
    body = json.loads(request.partition("\n")[2])
    return str(body["tpu"]["nodeSpec"][0]["node"]["metadata"]["startup-script"])


def boot(folder: Path, script: str) -> int:
    """The exit code of a startup script that installs into a folder; `started` is there if it started the service."""
    program(folder, "systemctl", f"touch {folder}/started")
    for place in ("/usr/local/bin", "/etc/systemd/system"):
        script = script.replace(place, str(folder))
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(["bash"], input=script, text=True, env=environment, check=False).returncode


@pytest.mark.parametrize("setup", ["false", "cat nothing | cat", "mount $DISK /data"])
def test_a_vm_whose_setup_fails_does_not_start_the_run(
    setup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "setup.sh"
    for text, starts in (("true", True), (f"{setup}\ntrue", False)):
        lines.write_text(text)
        _, request = dry_run("tpu_queued", capsys, "v5e:4x4", *CLOUD, f"--setup={lines}")
        (tmp_path / "started").unlink(missing_ok=True)
        assert (boot(tmp_path, startup_script(request)) == 0) == starts
        assert (tmp_path / "started").exists() == starts


def check_job_set(manifest: dict[str, Any]) -> None:
    """Holds a manifest to the schema that JobSet publishes, with all of its Kubernetes types."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    # Types are checked on the way in; what the schema does not know is missing on the way out.
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest


def test_a_job_set_restarts_what_was_preempted_and_not_what_a_person_must_mend(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, text = dry_run("gke", capsys, "h100:2x8", "--image=i", "--restarts=5", "--grace=90")
    spec = yaml.safe_load(text)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 75, 130]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 90
    assert spec["failurePolicy"]["maxRestarts"] == 5
    # Kubernetes' message of a failed Job, and the rules in their order.
    for code, action in ((75, "RestartJobSetAndIgnoreMaxRestarts"), (2, "FailJobSet"), (130, "FailJobSet")):
        message = f"Container lsm for pod default/base-0 failed with exit code {code} matching FailJob rule at index 0"
        rules = spec["failurePolicy"]["rules"]
        applied = [
            rule
            for rule in rules
            if any(re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [""]))
        ]
        assert applied[0]["action"] == action


@pytest.mark.parametrize("name", [EXAMPLES[kind][-1] for kind, chip in pods.ACCELERATORS.items() if chip.cloud_tpu])
@pytest.mark.parametrize("slices", [1, 3])
def test_queued_resources_fit_the_schema_of_the_cloud_tpu_api(
    name: str, slices: int, capsys: pytest.CaptureFixture[str]
) -> None:
    api = pytest.importorskip("google.cloud.tpu_v2alpha1.types", reason="google-cloud-tpu is not installed")
    tier = {1: ["--spot"], 3: ["--reserved", "--service-account=a@b", "--network=n"]}[slices]
    _, text = dry_run("tpu_queued", capsys, name, f"--slices={slices}", *CLOUD, *tier)
    body = json.loads(text.partition("\n")[2])
    resource = api.QueuedResource.from_json(json.dumps(body))  # unknown fields and wrong types are errors
    (spec,) = resource.tpu.node_spec
    assert spec.node.accelerator_config.topology == name.partition(":")[2]
    assert (spec.multi_node_params.node_count or 1) == slices
    assert bool(spec.node_id) == (slices == 1)
    script = startup_script(text)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "@" not in script.replace("a@b", "")


def test_the_job_of_slurm_has_a_process_for_each_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = dry_run("slurm", capsys, "h100:4x8", "--time=24:00:00", "--logs=logs", "--restarts=1")
    words = shlex.split(text)
    assert words[0] == "sbatch"
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=24:00:00"} < {*words}
    script = words.index(str(REPOSITORY / "launch" / "train.sbatch"))
    assert words[script + 1 : script + 4] == ["gs://bucket/runs/base", "logs", "1"]
    assert words[script + 5 : script + 7] == ["train", "--config"]


@pytest.mark.parametrize(
    ("engine", "words", "sentence"),
    [
        ("slurm", ["h100:4x8"], "write -- and then the options of lsm train"),
        ("slurm", ["h100:4x8", "--", "--config", BASE, "--workdir=gs://b/r"], "name a folder with --logs"),
        ("slurm", ["h100:4x8", "--", "--config", BASE, "--workdir=r", "--start-over"], "leave --start-over out"),
        ("slurm", ["h100:3x8", "--", "--config", BASE, "--workdir=r"], "must be a multiple of 384"),
        ("slurm", ["h900:3x8", "--", "--config", BASE, "--workdir=r"], "no topology 'h900:3x8'"),
        ("gke", ["cpu:1x2", "--image=i", "--", "--config", BASE, "--workdir=r"], "not on cpu:1x2"),
        ("gke", ["v5e:4x4", "--image=i", "--tiem=2", "--", "--config", BASE, "--workdir=r"], "no option --tiem=2"),
        ("gke", ["h100:2x8", "--slices=2", "--image=i", "--", "--config", BASE, "--workdir=r"], "TPUs have slices"),
        ("gke", ["v5e:4x4", "--mount=x", "--image=i", "--", "--config", BASE, "--workdir=r"], "write CLAIM:PATH"),
        ("gke", ["v5e:4x4", "--env=1A=2", "--image=i", "--", "--config", BASE, "--workdir=r"], "write NAME=VALUE"),
        ("tpu_queued", ["v5e:4x4", *CLOUD, "--env=A", "--", "--config", BASE, "--workdir=r"], "write NAME=VALUE"),
        ("tpu_queued", ["v5e:4x4", *CLOUD, "--env=A=1\nb", "--", "--config", BASE, "--workdir=r"], "in one line"),
        ("tpu_queued", ["tpu7x:2x2x1", *CLOUD, "--", "--config", BASE, "--workdir=r"], "no queue for tpu7x"),
        (
            "gke",
            ["v5e:4x4", "--image=i", "--", "--config", BASE, "--workdir=r", "--config.mesh.fsdp=3"],
            "does not fit 16",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(engine: str, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        importlib.import_module(engine).run(["--dry-run", *words])


def program(folder: Path, name: str, lines: str) -> None:
    """A stand-in for a command of an engine."""
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_the_batch_script_requeues_preemptions_and_failures_that_made_progress(tmp_path: Path) -> None:
    program(tmp_path, "srun", 'exit "$CODE"')
    (tmp_path / "job").write_text("JobState=RUNNING Reason=None Restarts=0 PreemptTime=None ")
    program(
        tmp_path,
        "scontrol",
        f"[[ $1 != requeue ]] && cat {tmp_path}/job || {{ $REQUEUE && touch {tmp_path}/requeued; }}",
    )
    words = [REPOSITORY / "launch" / "train.sbatch", tmp_path, tmp_path, "1", "lsm", "train"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}

    def start(code: int, **changes: str) -> tuple[bool, str]:
        """(whether the job is requeued, the last sentence) of a start that ends with an exit code."""
        (tmp_path / "requeued").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", *words],
            env={**environment, "CODE": str(code), "REQUEUE": "true"} | changes,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        return (tmp_path / "requeued").exists(), done.stdout.splitlines()[-1]

    again, sentence = start(75)
    assert again and sentence.endswith(": queued again")
    # SLURM refuses where it is requeueing the job itself, or Requeue=0.
    again, sentence = start(75, REQUEUE="false")
    assert not again and sentence.endswith(": preempted and saved")
    for code in (0, 2, 130):
        assert not start(code)[0]
    assert start(1)[0]
    again, sentence = start(137)
    assert not again and "failed with exit code 137, 2 times without a new checkpoint" in sentence
    checkpoint = tmp_path / "checkpoints" / "500"
    checkpoint.mkdir(parents=True)
    later = (tmp_path / "7-failures.log").stat().st_mtime + 1
    os.utime(checkpoint, (later, later))
    assert start(1)[0]
    # What SLURM 22.05 says of jobs that end while this script still runs.
    ending = "JobState=COMPLETING Reason={} Dependency=(null) Requeue=1 Restarts={} BatchFlag=1 PreemptTime={} Power="
    for reason, restarts, preempted, requeued in (
        ("None", 0, "None", False),
        ("TimeLimit", 0, "None", True),
        ("None", 1, "None", True),
        ("None", 0, "2026-11-29T05:41:07", True),
    ):
        (tmp_path / "job").write_text(ending.format(reason, restarts, preempted))
        again, sentence = start(75)
        assert again == requeued
        assert sentence.endswith("queued again" if again else "cancelled: not queued again")


def test_the_same_line_again_starts_a_job_set_anew_only_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    program(
        tmp_path,
        "kubectl",
        f'echo "$1" >>{log}; [[ $1 != get ]] || cat {state}; [[ $1 != apply ]] || cat >{tmp_path}/yaml',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ["v5e:4x4", "--image=i", "--", "--config", BASE, "--workdir=gs://b/Base_1"]
    gke = importlib.import_module("gke")
    for terminal, calls in (("", "get apply"), ("Failed", "get delete apply")):
        log.unlink(missing_ok=True)
        state.write_text(terminal)
        assert gke.run(words) == 0
        assert log.read_text().split() == calls.split()
    name = yaml.safe_load((tmp_path / "yaml").read_text())["metadata"]["name"]
    assert re.fullmatch(r"base-1-[0-9a-f]{6}", name)


def test_the_same_line_again_requests_anew_what_was_preempted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "gcloud", "echo token")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    states: dict[str, str] = {}
    calls: list[str] = []

    class CloudTpu(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            assert self.headers["Authorization"] == "Bearer token"
            path, _, query = self.path.partition("?")
            calls.append(self.command)
            name = path.rpartition("/")[2]
            if self.command == "POST":
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                states[query.removeprefix("queuedResourceId=")] = "ACCEPTED"
            elif self.command == "DELETE":
                del states[name]
            found = self.command != "GET" or name in states
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"state": {"state": states.get(name, "")}}).encode())

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CloudTpu) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU", f"http://127.0.0.1:{server.server_port}/")
        words = ["v5e:4x4", "--name=base", *CLOUD, "--", "--config", BASE, "--workdir=gs://b/base"]
        tpu_queued = importlib.import_module("tpu_queued")
        said = []
        for state in (None, "ACTIVE", "SUSPENDED"):
            if state:
                states["base"] = state
            assert tpu_queued.run(words) == 0
            said.append(capsys.readouterr().out.strip())
        server.shutdown()
    assert said == [
        "base: requested.",
        "base: the request is ACTIVE; nothing was submitted.",
        "base: requested anew, the last request was SUSPENDED.",
    ]
    assert calls == ["GET", "POST", "GET", "GET", "DELETE", "GET", "POST"]


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        pytest.param(engine, words, id=f"{document}: {engine} {words[0]}")
        for engine in ("slurm", "gke", "tpu-queued")
        for document, words in commands(f"launch/{engine}")
    ],
)
def test_every_launcher_command_in_the_documents_is_accepted(
    engine: str, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert importlib.import_module(engine.replace("-", "_")).run(["--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"# {arguments[0]}: ")
