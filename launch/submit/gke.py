"""launch/gke: a run as a JobSet on GKE, for TPU slices and GPU hosts; Kueue may queue it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import yaml
from command import (
    Request,
    add_environment,
    add_restarts,
    job_name,
    launcher_parser,
    main,
    read_request,
    summary,
)
from pods import ACCELERATORS

from lsm_jax.errors import RunError, UserError

PORT = 8476  # of JAX's coordination service
# Kubernetes' words for a pod whose exit code or disruption a rule of `podFailurePolicy` names.
BY_RULE = "PodFailurePolicy"


def run(words: Sequence[str]) -> int:
    """Submits the JobSet, or prints it."""
    parser = launcher_parser(
        "gke",
        "Submits a run to the cluster of kubectl's current context, as a JobSet with one pod per host.",
        "launch/gke v5e:16x16 --slices 2 --image IMAGE --queue tpus -- \\\n"
        "    --config configs/lsm2.py:base --workdir gs://bucket/runs/base",
    )
    add_restarts(parser, 20, "failures in all are restarted; preemptions always are")
    parser.add_argument("--image", required=True, help="container image with lsm_jax[tpu] or [cuda] and configs/")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices; sets mesh.slices (1)")
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace (default)")
    parser.add_argument("--queue", metavar="NAME", help="Kueue's local queue; without it the run starts at once")
    parser.add_argument("--spot", action="store_true", help="on Spot machines")
    parser.add_argument("--accelerator", metavar="LABEL", help="another node label of the chip: nvidia-h100-mega-80gb")
    parser.add_argument("--service-account", metavar="NAME", help="Kubernetes service account, for access to buckets")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="CLAIM:PATH",
        help="mounts a volume claim; repeatable",
    )
    add_environment(parser)
    parser.add_argument(
        "--grace", type=int, default=300, metavar="SECONDS", help="between SIGTERM and SIGKILL, for the last save (300)"
    )
    request = read_request(parser, words)
    manifest = yaml.safe_dump(job_set(request), sort_keys=False, width=120)
    if request.args.dry_run:
        print(summary(request), manifest, sep="\n", end="")
        return 0
    submit(job_name(request), request.args.namespace, manifest)
    return 0


def submit(name: str, namespace: str, manifest: str) -> None:
    """Applies the manifest. A JobSet of this name that has ended makes way; one that runs is left alone."""
    scope = ["--namespace", namespace]
    ended = kubectl("get", "jobset", name, *scope, "--ignore-not-found", "-o=jsonpath={.status.terminalState}")
    if ended:
        kubectl("delete", "jobset", name, *scope, "--wait=true")
    print(kubectl("apply", *scope, "-f", "-", text=manifest))


def kubectl(*words: str, text: str | None = None) -> str:
    """What kubectl prints; RunError with its last line if it fails."""
    try:
        done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("there is no kubectl here; --dry-run prints the JobSet for another machine.") from None
    if done.returncode:
        raise RunError(f"kubectl {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def job_set(request: Request) -> dict[str, Any]:
    """The manifest of a run."""
    args, pod, name = request.args, request.pod, job_name(request)
    jobs = {"name": "workers", "replicas": pod.slices, "template": {"spec": job(request, name)}}
    labels = {"labels": {"kueue.x-k8s.io/queue-name": args.queue}} if args.queue else {}
    # All pods of a slice go to one node pool, and no other slice goes there.
    alone = {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
    metadata = {"name": name, "namespace": args.namespace} | labels | (alone if pod.is_tpu else {})
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.restarts,
                "rules": [
                    {
                        "name": "bad_input_or_interrupted",
                        "action": "FailJobSet",
                        "onJobFailureReasons": [BY_RULE],
                        "onJobFailureMessagePatterns": ["failed with exit code (2|130) "],
                    },
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": [BY_RULE],
                    },
                ],
            },
            "replicatedJobs": [jobs],
        },
    }


def job(request: Request, name: str) -> dict[str, Any]:
    """The Job of one slice, or of all GPU hosts. A pod that fails ends it; the JobSet decides what comes then."""
    hosts = request.pod.hosts // request.pod.slices
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"operator": "In", "values": [2, 75, 130]},
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": pod_spec(request, name)},
    }


def pod_spec(request: Request, name: str) -> dict[str, Any]:
    """The pod of one host."""
    args, pod = request.args, request.pod
    resource = "google.com/tpu" if pod.is_tpu else "nvidia.com/gpu"
    accelerator = args.accelerator or ACCELERATORS[pod.kind].gke
    nodes = {"cloud.google.com/gke-accelerator": accelerator}
    if pod.is_tpu:
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": pod.topology,
        }
    tolerated = [resource]
    if args.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
        tolerated.append("cloud.google.com/gke-spot")
    mounts = [mount.partition(":")[::2] for mount in args.mount]
    if wrong := [mount for mount in args.mount if not mount.partition(":")[2].startswith("/")]:
        raise UserError(f"--mount {wrong[0]}: write CLAIM:PATH, with an absolute path.")
    command = ["lsm", "train", *request.train]
    if not pod.is_tpu and pod.hosts > 1:
        # Kubernetes fills in the number of the pod. GKE tells TPU hosts of each other, and JAX finds that.
        command += [f"--coordinator={name}-workers-0-0.{name}:{PORT}"]
        command += [f"--process-count={pod.hosts}", "--process-id=$(JOB_COMPLETION_INDEX)"]
    container = {
        "name": "lsm",
        "image": args.image,
        "command": command,
        # Kubernetes would put variables in for $(NAME); $$ is its $.
        "env": [{"name": key, "value": value.replace("$", "$$")} for key, value in dict(args.env).items()],
        "resources": {"limits": {resource: pod.chips_per_host}},
        # GPUs of a host exchange data through shared memory, of which a container has 64 MB by default.
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        + [{"name": claim, "mountPath": path} for claim, path in mounts],
    }
    spec = {"serviceAccountName": args.service_account} if args.service_account else {}
    return spec | {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": args.grace,
        "nodeSelector": nodes,
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tolerated],
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
        + [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in dict(mounts)],
    }


if __name__ == "__main__":
    main(run)
