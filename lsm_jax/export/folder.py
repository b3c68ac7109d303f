"""An export as a folder: the files of a format, checked on real windows, and a card. It appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError
from lsm_jax.export import onnx, safetensors, stablehlo
from lsm_jax.export.card import card_of
from lsm_jax.export.check import CheckWindows, check_windows
from lsm_jax.train.run import Run

CARD = "card.json"
# By format: the file that holds the model, and what writes it into a folder and returns what it has checked.
FORMATS: Mapping[str, tuple[str, Callable[[Run, Path, CheckWindows], list[str]]]] = {
    "safetensors": (safetensors.FILE, safetensors.write_safetensors),
    "stablehlo": (stablehlo.FILE, stablehlo.write_stablehlo),
    "onnx": (onnx.FILE, onnx.write_onnx),
}


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
      out: must not exist, or be empty or an earlier export.
      file_format: a name of `FORMATS`.
      write_card: makes the README of the card's content.
      data: datasets to check the export on, instead of the run's own.

    Raises:
      UserError: `out` is in the way, no dataset to check on, or the format cannot hold this run.
      RunError: the written files do not give what the run gives.
    """
    file, write = FORMATS[file_format]
    if out.exists() and not (out / CARD).is_file() and not _is_empty_folder(out):
        raise UserError(f"{out} exists and is not an export; choose another --out.")
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
        (folder / "README.md").write_text(write_card(card), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return card


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
