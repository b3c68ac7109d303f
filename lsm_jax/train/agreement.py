"""What all processes of a run must have in common, compared before anything is compiled or written."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import lsm_jax
from lsm_jax.config import Config, flatten
from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError
from lsm_jax.train.messages import Messages
from lsm_jax.train.processes import process_of

_LISTED = 5  # differences in a sentence


class Disagreement(UserError):
    """Raised by all processes alike: none has to tell the others."""


def check_agreement(config: Config, workdir: Path | str, token: str | None, sees: Callable[[str], bool]) -> None:
    """Compares configuration, code and run folder of all processes. All of them call this.

    Args:
      workdir: the processes may have different paths to it, but must see the same folder.
      token: of the first process's lock on the folder; ignored on the others.
      sees: whether this process sees the lock with this token.

    Raises:
      Disagreement: names the keys, values and hosts that differ.
    """
    process, count = process_of()
    if count == 1:
        return
    messages = Messages()
    if process == 0:
        messages.send("token", token or "")
    facts = {"lsm_jax": code_version(), "jax": metadata.version("jax"), "jaxlib": metadata.version("jaxlib")}
    facts |= {key: repr(value) for key, value in flatten(config).items()}
    where = str(workdir.absolute()) if isinstance(workdir, Path) else workdir
    seen = sees(messages.receive("token", 0))
    _compare(messages, {"workdir": where, "sees": seen, "facts": facts})


def check_same_datasets(datasets: Sequence[Dataset]) -> None:
    """Compares the content of the datasets of all processes; `Disagreement` as above. All of them call this."""
    if process_of()[1] > 1:
        facts = {f"the content of dataset {dataset.name}": dataset.fingerprint[:12] for dataset in datasets}
        _compare(Messages(), {"workdir": "", "sees": True, "facts": facts})


def _compare(messages: Messages, mine: Mapping[str, Any]) -> None:
    """The first process compares, so that the others need not read what all of them have sent."""
    process, count = process_of()
    messages.send("facts", json.dumps({"host": socket.gethostname(), **mine}))
    if process == 0:
        all_facts = [json.loads(messages.receive("facts", other)) for other in range(count)]
        messages.send("verdict", disagreement(all_facts))
    if verdict := messages.receive("verdict", 0):
        raise Disagreement(verdict)


def disagreement(processes: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on what differs between the processes, in their order; empty if nothing does."""
    first, faults = processes[0], []
    reference = f"process 0 (host {first['host']})"
    for number, other in enumerate(processes):
        where = f"process {number} (host {other['host']})"
        for key in sorted({*first["facts"], *other["facts"]}):
            one, two = (facts["facts"].get(key, "missing") for facts in (first, other))
            if one != two:
                faults.append(f"{key} is {two} on {where}, {one} on {reference}")
        if not other["sees"]:
            faults.append(
                f"--workdir {other['workdir']} on {where} is not the folder {first['workdir']} of {reference}"
            )
    if not faults:
        return ""
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    advice = "Start all processes with the same command and the same code, in a folder that all hosts see."
    return f"the processes of this run differ: {'; '.join(faults[:_LISTED])}{more}. {advice}"


def code_version() -> str:
    """The version of this package with a hash of its sources, which tells two checkouts apart."""
    package = Path(lsm_jax.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{lsm_jax.__version__}+{digest.hexdigest()[:12]}"
