"""What a suite about words and classes found: one score a row, with its interval over people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm_jax.evals.results import write_whole

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a suite is run.

    Attributes:
      split: whose windows are scored.
      max_windows: at most this many windows of each dataset are scored, spread evenly: a quick look.
      batch_size: windows per model call.
      seed: of draws: people, pools, labelled days, words.
      prompts: the prompt file of zero-shot scores; None: the shipped one that fits the data.
      decode: of `captioning.DECODINGS`.
      progress: told the windows read and in all, anew for each pass over a split.
    """

    split: str = "test"
    max_windows: int | None = None
    batch_size: int = 32
    seed: int = 0
    prompts: Path | None = None
    decode: str = "greedy"
    progress: Callable[[int, int], None] | None = None

    @property
    def learning(self) -> Settings:
        """The same for the splits that references learn from, which are always read whole."""
        return dataclasses.replace(self, max_windows=None)


@dataclasses.dataclass(frozen=True)
class Findings:
    """A suite's results.

    Attributes:
      results: rows of {dataset, method, task, class, score, ci95, windows, people, ...}; `ci95` is over people, None
        where there are fewer than two.
      notes: sentences a reader needs: what was left out and why, how things were scored.
      details: of single windows, where a suite gives them; no records.
      provenance: what made these numbers.
    """

    suite: str
    results: Sequence[Row]
    notes: Sequence[str]
    provenance: Mapping[str, Any]
    details: Sequence[Row] = ()

    def write(self, path: Path) -> Path:
        """Writes `path`, a .json, and its .md, each whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False))
        heading = f"# {self.suite}, step {self.provenance['step']}, split `{self.provenance['split']}`"
        made = f"Made with `{self.provenance['command']}`, seed {self.provenance['seed']}."
        parts = [heading, "", *self.table(), "", *(f"- {note}" for note in self.notes), "", made, ""]
        write_whole(path.with_suffix(".md"), "\n".join(parts))
        return path

    def table(self) -> list[str]:
        """The Markdown table: a line per task and class, a column per method."""
        methods = list(dict.fromkeys(row["method"] for row in self.results))
        lines: dict[tuple[str, str, str], dict[str, Row]] = {}
        for row in self.results:
            lines.setdefault((row["dataset"], row["task"], row["class"]), {})[row["method"]] = row
        table = [
            f"| dataset | task | class | {' | '.join(methods)} | windows | people |",
            f"|---|---|---|{'---:|' * (len(methods) + 2)}",
        ]
        for key, rows in lines.items():
            some = next(iter(rows.values()))
            cells = [_cell(rows.get(method)) for method in methods]
            table.append(f"| {' | '.join([*key, *cells])} | {some['windows']} | {some['people']} |")
        return table


def _cell(row: Row | None) -> str:
    if row is None or row["score"] is None:
        return "-"
    interval = f" ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})" if row["ci95"] else ""
    return f"{row['score']:.3f}{interval}"
