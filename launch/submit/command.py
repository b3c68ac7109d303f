"""The command line of the launchers: `launch/ENGINE TOPOLOGY [OPTIONS] -- OPTIONS OF lsm train`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable, Sequence

from jax.sharding import AbstractMesh
from pods import Pod, pod

from lsm_jax.cli import main as lsm
from lsm_jax.config import load_config
from lsm_jax.errors import RunError, UserError
from lsm_jax.sharding import AXES
from lsm_jax.train.mesh import check_batch, mesh_sizes


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be started.

    Attributes:
      args: the launcher's own options.
      engine_options: options that the launcher does not know; they are the engine's.
      pod: the machines.
      train: the words after `lsm train`.
      workdir: of the run.
      mesh: size of each axis on these machines.
    """

    args: argparse.Namespace
    engine_options: tuple[str, ...]
    pod: Pod
    train: tuple[str, ...]
    workdir: str
    mesh: dict[str, int]


def launcher_parser(engine: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all launchers have."""
    parser = argparse.ArgumentParser(
        prog=f"launch/{engine}",
        usage=f"launch/{engine} TOPOLOGY [OPTIONS] -- OPTIONS OF lsm train",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("topology", metavar="TOPOLOGY", help="as of `lsm plan`: h100:4x8 (hosts x GPUs), v5e:16x16")
    parser.add_argument("--name", help="of the job (made from the run's folder); one name never runs twice at once")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    return parser


def add_restarts(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """The option `--restarts`; engines count in different ways."""
    parser.add_argument(
        "--restarts", type=int, default=default, metavar="N",
        help=f"how many {what} ({default})",
    )  # fmt: skip


def add_environment(parser: argparse.ArgumentParser) -> None:
    """The option `--env`, for engines that start a container."""
    parser.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an environment variable; repeatable",
    )


def _variable(text: str) -> tuple[str, str]:
    """Argument type: NAME=VALUE, with a name that a shell would take; UserError otherwise, or for several lines."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", text):
        raise UserError(f"--env {text}: write NAME=VALUE in one line, the name in letters, digits and _.")
    name, _, value = text.partition("=")
    return name, value


def read_request(
    parser: argparse.ArgumentParser, words: Sequence[str], *, engine_options: bool = False, cpu: bool = False
) -> Request:
    """Reads and checks a command line, before anything waits in a queue.

    Args:
      engine_options: options that are not known are the engine's; otherwise they are refused.
      cpu: whether the topology may be `cpu:NODESxPROCESSES`.

    Raises:
      UserError: `lsm train` would refuse its options, or the mesh or batch does not fit the machines.
    """
    split = list(words).index("--") if "--" in words else len(words)
    args, unknown = parser.parse_known_args(words[:split])
    train = list(words[split + 1 :])
    if unknown and not engine_options:
        raise UserError(f"{parser.prog} has no option {unknown[0]}; options of lsm train come after --.")
    if wrong := {word.partition("=")[0] for word in train} & {"--start-over", "--preempted-exit-code"}:
        raise UserError(
            f"{parser.prog} repeats its command after a preemption: leave {' and '.join(sorted(wrong))} out."
        )
    if not train:
        raise UserError(f"{parser.prog}: write -- and then the options of lsm train: --config ... --workdir ...")
    machines = pod(args.topology, getattr(args, "slices", 1))
    if machines.kind == "cpu" and not cpu:
        raise UserError(f"{parser.prog} starts runs on accelerators, not on {args.topology}.")
    if machines.slices > 1:
        train.append(f"--config.mesh.slices={machines.slices}")
    parsed = lsm.parse("train", train)
    config = load_config(parsed.config, parsed.overrides)
    sizes = mesh_sizes(config.mesh, machines.devices)
    check_batch(AbstractMesh(sizes, AXES), config)
    mesh = {"slices": machines.slices} | dict(zip(AXES, sizes, strict=True))
    # As it was written: a path would lose a slash of gs://.
    words_of_workdir = argparse.ArgumentParser(add_help=False)
    words_of_workdir.add_argument("--workdir")
    workdir = words_of_workdir.parse_known_args(train)[0].workdir
    return Request(args, tuple(unknown), machines, tuple(train), workdir, mesh)


def job_name(request: Request, longest: int = 40) -> str:
    """A name that Kubernetes takes: --name, or that of the run's folder with a checksum of its whole path.

    A --name that is shortened or changed gets a checksum, too.
    """
    given, workdir = request.args.name, request.workdir.rstrip("/")
    wanted = given or workdir.rsplit("/", 1)[-1]
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"lsm-{name}".strip("-")
    if name == given and len(name) <= longest:
        return name
    checksum = hashlib.sha256((given or workdir).encode()).hexdigest()[:6]
    return f"{name[: longest - 7].strip('-')}-{checksum}"


def summary(request: Request) -> str:
    """The machines in one line, for people."""
    pod = request.pod
    sizes = ", ".join(f"{axis}={size}" for axis, size in request.mesh.items())
    return f"# {request.args.topology}: hosts={pod.hosts}, devices={pod.devices}, mesh {sizes}"


def main(run: Callable[[Sequence[str]], int]) -> None:
    """Runs a launcher on the process's arguments; errors are sentences, exit codes those of `lsm`."""
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        code, sentence = 2, str(error)
    except RunError as error:
        code, sentence = 1, str(error)
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)
