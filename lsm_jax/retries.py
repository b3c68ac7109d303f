"""What is tried again when it fails, because file systems and stores of clusters fail for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def retry(call: Callable[[], _T], waits: Iterable[float], again: Callable[[Exception, int], bool]) -> _T:
    """The result of a call, which is made again after a failure; the last failure is raised.

    Args:
      waits: seconds to wait before each further try.
      again: whether there is to be one, from the failure and how many came before it. It is not asked after the last.
    """
    for failures, wait in enumerate(waits):
        try:
            return call()
        except Exception as error:
            if not again(error, failures):
                raise
        time.sleep(wait)
    return call()
