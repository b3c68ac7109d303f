"""launch/tpu-queued: a run on Cloud TPU VMs, requested from the queue of the Cloud TPU API."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

STARTUP_SCRIPT = Path(__file__).with_name("tpu_startup.sh")
# A request in one of these states holds no machines and never will again.
ENDED = {"SUSPENDED", "FAILED"}


def run(words: Sequence[str]) -> int:
    """Requests the machines, or prints the request. Run again, it requests anew what was preempted."""
    parser = launcher_parser(
        "tpu-queued",
        "Requests Cloud TPU VMs that start the run in a container, and start it again after a failure or reboot.\n"
        "Run again, it says in which state the request is, and requests anew what was preempted.",
        "launch/tpu-queued v6e:16x16 --project P --zone us-east5-b --image IMAGE --spot -- \\\n"
        "    --config configs/lsm2.py:base --workdir gs://bucket/runs/base",
    )
    add_restarts(parser, 5, "failures within an hour are restarted, exit code 75 (preempted and saved) among them")
    parser.add_argument("--project", required=True, help="Google Cloud project")
    parser.add_argument("--zone", required=True, help="where the TPUs are")
    parser.add_argument("--image", required=True, help="container image with lsm_jax[tpu] and configs/")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices; sets mesh.slices (1)")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--spot", action="store_true", help="Spot machines, which may be preempted")
    tier.add_argument("--reserved", action="store_true", help="machines of a reservation")
    parser.add_argument("--runtime", help="software version of the VMs (the base image of the TPU's generation)")
    parser.add_argument("--network", help="network of the VMs")
    parser.add_argument("--service-account", metavar="EMAIL", help="account of the VMs, for buckets and images")
    parser.add_argument(
        "--setup", type=Path, metavar="FILE", help="shell lines that every VM runs as root before: logins, mounts"
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="FOLDER:PATH",
        help="a folder of the VM; repeatable",
    )
    add_environment(parser)
    request = read_request(parser, words)
    name, body = job_name(request), queued_resource(request)
    parent = f"projects/{request.args.project}/locations/{request.args.zone}/queuedResources"
    if request.args.dry_run:
        print(summary(request), f"# POST {api()}/{parent}?queuedResourceId={name}", sep="\n")
        print(json.dumps(body, indent=2))
        return 0
    state = state_of(f"{parent}/{name}")
    if state in ENDED:
        call("DELETE", f"{parent}/{name}?force=true")
        while state_of(f"{parent}/{name}"):
            time.sleep(5)
    elif state:
        print(f"{name}: the request is {state}; nothing was submitted.")
        return 0
    call("POST", f"{parent}?queuedResourceId={name}", body)
    print(f"{name}: requested{f' anew, the last request was {state}' if state else ''}.")
    return 0


def queued_resource(request: Request) -> dict[str, Any]:
    """The `QueuedResource` of the Cloud TPU API (v2alpha1) for a run."""
    args, pod, name = request.args, request.pod, job_name(request)
    chip = ACCELERATORS[pod.kind] if pod.is_tpu else None
    if not (chip and chip.cloud_tpu):
        raise UserError(f"Cloud TPU has no queue for {pod.kind}; use launch/gke.")
    node: dict[str, Any] = {
        "acceleratorConfig": {"type": chip.cloud_tpu, "topology": pod.topology},
        "runtimeVersion": args.runtime or chip.runtime,
        "metadata": {"startup-script": startup_script(request)},
    }
    if args.network:
        node["networkConfig"] = {"network": args.network, "enableExternalIps": True}
    if args.service_account:
        scope = ["https://www.googleapis.com/auth/cloud-platform"]
        node["serviceAccount"] = {"email": args.service_account, "scope": scope}
    spec = {"parent": f"projects/{args.project}/locations/{args.zone}", "node": node}
    several = {"multiNodeParams": {"nodeCount": pod.slices, "nodeIdPrefix": name}}
    tier = {"spot": {}} if args.spot else {"guaranteed": {"reserved": True}} if args.reserved else {}
    return {"tpu": {"nodeSpec": [spec | (several if pod.slices > 1 else {"nodeId": name})]}} | tier


def startup_script(request: Request) -> str:
    """What every VM runs at each boot."""
    args = request.args
    container = [word for mount in args.mount for word in ("--volume", mount)]
    container += [word for pair in dict(args.env).items() for word in ("--env", "=".join(pair))]
    container += [args.image, "lsm", "train", *request.train]
    values = {
        "@SETUP@": args.setup.read_text(encoding="utf-8").strip() if args.setup else "true",
        "@CONTAINER@": shlex.join(container),
        "@STARTS@": str(args.restarts + 1),
    }
    script = STARTUP_SCRIPT.read_text(encoding="utf-8")
    for placeholder, value in values.items():
        script = script.replace(placeholder, value)
    return script


def api() -> str:
    """The address of the API; gcloud's own variable changes it."""
    address = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU", "https://tpu.googleapis.com/")
    return f"{address.rstrip('/')}/v2alpha1"


def state_of(resource: str) -> str:
    """The state of a request; empty if there is none."""
    return str(call("GET", resource).get("state", {}).get("state", ""))


def call(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Calls the API as gcloud's user; {} where the resource does not exist. RunError if it refuses."""
    try:
        token = subprocess.run(["gcloud", "auth", "print-access-token"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or "there is no gcloud here"
        raise UserError(f"gcloud gives no access token ({reason.strip()}); run `gcloud auth login`.") from None
    headers = {"Authorization": f"Bearer {token.stdout.strip()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{api()}/{path}", data, headers, method=method), timeout=60
        ) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if method == "GET" and error.code == 404:
            return {}
        text = error.read().decode(errors="replace")
        raise RunError(f"Cloud TPU refuses to {method} {path} ({error.code}): {text[:1000]}") from None
    except urllib.error.URLError as error:
        raise RunError(f"Cloud TPU does not answer: {error.reason}.") from None


if __name__ == "__main__":
    main(run)
