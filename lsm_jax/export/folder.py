"""An export as a folder: the files of a format, checked on real windows, and a card. It appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError
from lsm_jax.export import onnx, safetensors, stablehlo
from lsm_jax.export.card import card_of
from lsm_jax.export.check import CheckWindows, check_windows
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import CONFIG, SPEC, TOKENIZER

CARD, README = "card.json", "README.md"
# By format: the file that holds the model, and what writes it into a folder and returns what it has checked.
FORMATS: Mapping[str, tuple[str, Callable[[Run, Path, CheckWindows], list[str]]]] = {
    "safetensors": (safetensors.FILE, safetensors.write_safetensors),
    "stablehlo": (stablehlo.FILE, stablehlo.write_stablehlo),
    "onnx": (onnx.FILE, onnx.write_onnx),
}
_FILES = {CARD, README, CONFIG, SPEC, TOKENIZER, *(file for file, _ in FORMATS.values())}


def export_run(
    run: Run,
    workdir: Path,
    out: Path,
    file_format: str,
    write_card: Callable[[Mapping[str, Any]], str],
    data: Sequence[Path] = (),
) -> dict[str, Any]:
    """Writes a run to the folder `out` and returns its card.

    Args:
      run: from `load_run`.
      workdir: the run's folder; its data, people and evaluation, if any, go into the card.
      out: must not exist, or be empty or an earlier export with nothing beside it.
      file_format: a name of `FORMATS`.
      write_card: makes the README of the card's content.
      data: datasets to check the export on, instead of the run's own.

    Raises:
      UserError: `out` is in the way, no dataset to check on, or the format cannot hold this run.
      RunError: the written files do not give what the run gives.
    """
    file, write = FORMATS[file_format]
    out = out.resolve()
    if out.exists():
        names = [file.name for file in out.iterdir()] if out.is_dir() else [out.name]
        check_replaceable(str(out), names, (out / CARD).read_bytes() if CARD in names else None)
    windows = check_windows(run, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as staging:
        folder = Path(staging) / "export"
        folder.mkdir()
        checks = [f"on {windows.summary}", *write(run, folder, windows)]
        card = card_of(run, safetensors.portable(run.config), workdir, file_format)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        card |= {"sha256": {file: digest}, "checked": checks}
        (folder / CARD).write_text(json.dumps(card, indent=1, allow_nan=False))
        (folder / README).write_text(write_card(card), encoding="utf-8")
        _put(folder, out)
    return card


def check_replaceable(place: str, files: Collection[str], card: bytes | None) -> None:
    """UserError where an export would replace something else than an earlier one.

    Args:
      files: their paths below the place.
      card: the content of its `card.json`, if it has one.
    """
    if not files:
        return
    try:
        is_export = str(json.loads(card or b"")["format"]).startswith("lsm_jax ")
    except (ValueError, KeyError, TypeError, RecursionError):
        is_export = False
    if not is_export:
        raise UserError(f"{place} exists and is not an export; choose another --out.")
    if others := sorted({name.partition("/")[0] for name in files} - _FILES):
        raise UserError(
            f"{place} is an export, but {', '.join(others)} in it would be deleted with it; move that away, or choose "
            "another --out."
        )


def _put(folder: Path, out: Path) -> None:
    """Moves a folder to `out`; what is there is moved aside first and deleted last."""
    if not out.exists():
        folder.rename(out)
        return
    earlier = Path(tempfile.mkdtemp(prefix=f".{out.name}.earlier-", dir=out.parent))
    out.rename(earlier)
    try:
        folder.rename(out)
    except BaseException:
        earlier.rename(out)
        raise
    shutil.rmtree(earlier)
