"""Reads JSON files that may be cut or damaged."""

from __future__ import annotations

import json
import re
from typing import Any

from lsm_jax.ingest.files.opening import read_bytes
from lsm_jax.ingest.files.source import SourceFile

_SEPARATORS = re.compile(r"[\s,]*")  # of the items of a list
_MAX_FAULT_LETTERS = 80


def read_json(file: SourceFile, max_bytes: int) -> tuple[Any, str]:
    """(content, ""), or of a damaged file (the whole items of its first list before the damage, what is wrong).

    Raises:
      UnreadableFile: as `files.opening.read_bytes`.
    """
    text = read_bytes(file, max_bytes).decode("utf-8-sig", "replace")
    try:
        return json.loads(text), ""
    except (ValueError, RecursionError) as error:
        return _items_before_damage(text), str(error)[:_MAX_FAULT_LETTERS]


def _items_before_damage(text: str) -> list[Any]:
    decoder, place, items = json.JSONDecoder(), text.find("[") + 1, []
    while place:
        try:
            item, place = decoder.raw_decode(text, _SEPARATORS.match(text, place).end())  # type: ignore[union-attr]
        except (ValueError, RecursionError):
            break
        items.append(item)
    return items
