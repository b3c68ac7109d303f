"""Writing a dataset on Apache Beam, TFDS's own way: for studies whose windows one process cannot write in time.

Same records, splits and sidecar files as `store.write_dataset`; only the order of windows within a split differs
(TFDS orders by the hash of a window's key).
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import tensorflow_datasets as tfds

from lsm_jax.channels import channels as registered
from lsm_jax.data.card import DatasetSummary
from lsm_jax.data.codec import RecordWriter, record_features
from lsm_jax.data.shards import NAME
from lsm_jax.data.store import SPLITS, assign_splits, check_free, finish_dataset
from lsm_jax.errors import UserError
from lsm_jax.windows import Window

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def write_dataset_on_beam(
    out: Path,
    name: str,
    channels: Sequence[str],
    windows: Callable[[beam.Pipeline], beam.PCollection],
    *,
    seed: int = 0,
    description: str = "",
    overwrite: bool = False,
    options: Sequence[str] = (),
) -> DatasetSummary:
    """Runs a pipeline that yields windows and writes them as a dataset.

    Args:
      windows: adds its part to the pipeline and returns a collection of `Window`.
      options: Beam's own command-line options; `--runner=...` chooses the runner, the local one by default.

    Other arguments and errors as `store.write_dataset`.
    """
    registered(channels)
    if not NAME.fullmatch(name):
        raise UserError(f"dataset name {name!r}: use lower-case letters, digits and underscores, a letter first.")
    check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        builder = _builder(name, description, windows, tuple(channels), seed)(
            data_dir=str(staging), file_format="array_record"
        )
        tfds.disable_progress_bar()
        runner = None if any(option.startswith("--runner") for option in options) else LOCAL_RUNNER
        config = tfds.download.DownloadConfig(
            beam_runner=runner, beam_options=beam.options.pipeline_options.PipelineOptions(list(options))
        )
        builder.download_and_prepare(download_config=config)
        dataset = Path(builder.data_dir)
        summary = finish_dataset(dataset, channels)
        if out.exists():
            out.rename(staging / "replaced")
        dataset.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return dataclasses.replace(summary, path=out)


def _builder(
    dataset: str,
    text: str,
    windows: Callable[[beam.Pipeline], beam.PCollection],
    channels: tuple[str, ...],
    seed: int,
) -> type[tfds.core.GeneratorBasedBuilder]:
    """A TFDS builder of this name; TFDS takes the name of a dataset from its class."""

    class WindowsBuilder(tfds.core.GeneratorBasedBuilder):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")
        url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=record_features(), description=text or dataset)

        def _split_generators(self, dl_manager: Any, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:  # noqa: ARG002
            found = windows(pipeline)
            people = found | "Participant" >> beam.Map(_participant) | "Distinct" >> beam.Distinct()
            split_of = beam.pvalue.AsSingleton(
                people | "List" >> beam.combiners.ToList() | "Split" >> beam.Map(assign_splits, seed)
            )
            examples = found | "Encode" >> beam.ParDo(_Encode(channels))
            return {split: examples | split >> beam.Filter(_is_in, split_of, split) for split in SPLITS}

        def _generate_examples(self) -> Iterator[Any]:
            raise NotImplementedError("examples come from `_split_generators`")

    return WindowsBuilder


class _Encode(beam.DoFn):
    """Windows to (key, example of `record_features`)."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self._channels = channels

    def setup(self) -> None:
        self._writer = RecordWriter(self._channels)

    def process(self, element: Window, *_: Any, **__: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        yield f"{element.participant}-{int(element.start.timestamp())}", self._writer.example(element)


def _participant(window: Window) -> str:
    return window.participant


def _is_in(keyed: tuple[str, dict[str, Any]], split_of: dict[str, str], split: str) -> bool:
    return split_of[keyed[1]["participant"]] == split
