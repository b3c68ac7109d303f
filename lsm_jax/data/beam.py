"""Writes a dataset on Apache Beam with TFDS's Beam writer, for studies too large for one process.

Records, splits and sidecar files are those of `store.write_dataset`. Only the order of windows within a split differs,
because TFDS sorts by the hash of a window's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import tensorflow_datasets as tfds

from lsm_jax.data.codec import RecordEncoder, record_features
from lsm_jax.data.store import SPLITS, assign_splits, finish_dataset, staging_folder
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
) -> None:
    """Runs a pipeline that makes windows and writes them as a dataset.

    Args:
      windows: adds its part to the pipeline and returns a collection of `Window`.
      options: Beam's own command-line options; `--runner=...` chooses the runner, by default the local one.

    Other arguments and errors are those of `store.write_dataset`.
    """
    with staging_folder(out, name, channels, overwrite) as staging:
        builder = _builder(name, description, windows, tuple(channels), seed)(
            data_dir=str(staging), file_format="array_record"
        )
        tfds.disable_progress_bar()
        runner = None if any(option.startswith("--runner") for option in options) else LOCAL_RUNNER
        config = tfds.download.DownloadConfig(
            beam_runner=runner, beam_options=beam.options.pipeline_options.PipelineOptions(list(options))
        )
        builder.download_and_prepare(download_config=config)
        finish_dataset(Path(builder.data_dir), channels, out)


def _builder(
    dataset: str,
    text: str,
    windows: Callable[[beam.Pipeline], beam.PCollection],
    channels: tuple[str, ...],
    seed: int,
) -> type[tfds.core.GeneratorBasedBuilder]:
    """A TFDS builder class; TFDS takes the name of the dataset from it."""

    class WindowsBuilder(tfds.core.GeneratorBasedBuilder):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")
        url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=record_features(), description=text or dataset)

        def _split_generators(self, dl_manager: Any, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:  # noqa: ARG002
            all_windows = windows(pipeline)
            people = all_windows | "Participant" >> beam.Map(_participant) | "Distinct" >> beam.Distinct()
            split_of = beam.pvalue.AsSingleton(
                people | "List" >> beam.combiners.ToList() | "Split" >> beam.Map(assign_splits, seed)
            )
            examples = all_windows | "Encode" >> beam.ParDo(_Encode(channels))
            return {split: examples | split >> beam.Filter(_is_in, split_of, split) for split in SPLITS}

        def _generate_examples(self) -> Iterator[Any]:
            raise NotImplementedError("examples come from `_split_generators`")

    return WindowsBuilder


class _Encode(beam.DoFn):
    """Maps a window to (key, example of `record_features`)."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self._channels = channels

    def setup(self) -> None:
        self._writer = RecordEncoder(self._channels)

    def process(self, element: Window, *_: Any, **__: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        yield f"{element.participant}-{int(element.start.timestamp())}", self._writer.example(element)


def _participant(window: Window) -> str:
    return window.participant


def _is_in(keyed: tuple[str, dict[str, Any]], split_of: dict[str, str], split: str) -> bool:
    return split_of[keyed[1]["participant"]] == split
