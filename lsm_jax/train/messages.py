"""Short texts between the processes of a run. No device takes part, so any thread may send and wait for them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from lsm_jax.errors import RunError, UserError
from lsm_jax.train.processes import key_value_store, process_of

_SECONDS = 1800
_CHANNELS = itertools.count()


class Messages:
    """A channel between all processes, which open their channels in the same order.

    Args:
      seconds: how long to wait for a text.
    """

    def __init__(self, seconds: int = _SECONDS) -> None:
        self._name, self._seconds = f"lsm_jax/{next(_CHANNELS)}", seconds
        self._process, self._count = process_of()
        self._own: dict[str, str] = {}
        self._gathered = itertools.count()

    def send(self, key: str, text: str) -> None:
        """Sends a text to all processes, once for each key."""
        self._own[key] = text
        if self._count > 1:
            key_value_store().key_value_set(f"{self._name}/{key}/{self._process}", text)

    def receive(self, key: str, process: int) -> str:
        """Waits for the text that a process sends under a key.

        Raises:
          RunError: it does not come in time.
        """
        if process == self._process:
            return self._own[key]
        end = time.monotonic() + self._seconds
        while True:
            try:  # for a second at a time, so that Ctrl-C is heard
                return str(key_value_store().blocking_key_value_get(f"{self._name}/{key}/{process}", 1000))
            except Exception as error:  # JAX has no type of its own for this
                if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > end:
                    raise RunError(f"process {process} did not answer within {self._seconds} s.") from error

    def gather(self, action: Callable[[], Any]) -> list[Any]:
        """Runs an action on all processes, which all call this.

        Returns:
          What it returned (JSON) on each of them.

        Raises:
          UserError, RunError: it failed on one process; all processes raise the same sentence.
        """
        key, fault, result = f"gather-{next(self._gathered)}", None, None
        try:
            result = action()
        except Exception as error:
            fault = error
        kind = "UserError" if isinstance(fault, UserError) else "RunError" if fault else ""
        self.send(key, json.dumps([kind, str(fault) if fault else result]))
        if fault and not isinstance(fault, (UserError, RunError)):
            raise fault
        answers = [json.loads(self.receive(key, process)) for process in range(self._count)]
        for process, (kind, sentence) in enumerate(answers):
            if kind:
                where = f"process {process}: " if self._count > 1 else ""
                raise (UserError if kind == "UserError" else RunError)(where + sentence) from fault
        return [result for _, result in answers]

    def forget(self, key: str) -> None:
        """Frees the memory of a key's texts, which nobody may wait for any more."""
        self._own.pop(key, None)
        if self._count > 1:
            key_value_store().key_value_delete(f"{self._name}/{key}/")
