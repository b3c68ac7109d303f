"""What a resumed run may change, and that it knows its data wherever they are."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from short_training import CHANNELS, half_hour_dataset, half_hour_windows, short_config

from lsm_jax.config import Config, flatten, with_changes
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import write_dataset
from lsm_jax.errors import UserError
from lsm_jax.events import read_events
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import load_run
from lsm_jax.train.workdir import MAY_CHANGE, REASONS, check_same, check_same_data, write_config, write_data


def flip(shard: Path, record: int) -> None:
    """Flips a bit of a record."""
    content, chunk = bytearray(shard.read_bytes()), 64
    for _ in range(record):
        chunk += 40 + int.from_bytes(content[chunk + 8 : chunk + 16], "little")
    content[chunk + 60] ^= 1
    shard.write_bytes(content)


def losses(workdir: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(workdir) if "loss" in record}


def without_later_checkpoints(workdir: Path, copy: Path, step: int) -> Path:
    """A copy of a run that was cut off after a checkpoint."""
    shutil.copytree(workdir, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
    return copy


def test_a_run_on_a_corrupt_record_resumes_exactly_where_its_data_have_moved_to(tmp_path) -> None:
    data = half_hour_dataset(tmp_path / "data")
    flip(next(data.glob("*train*")), 11)
    whole, moved = tmp_path / "whole", tmp_path / "elsewhere" / "data"
    train(short_config(data), whole)
    (event,) = [event for event in read_events(whole) if event["event"] == "corrupt_record"]
    assert "set aside: record 11 of the train split of half_hours" in event["sentence"]
    assert read_metrics(whole)[-2]["corrupt_records"] == 1
    shutil.move(data, moved)

    cut = without_later_checkpoints(whole, tmp_path / "cut", 4)
    train(short_config(f"{moved}/"), cut)
    assert losses(cut) == losses(whole)
    for expected, found in zip(*(load_run(run).params.items() for run in (whole, cut)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert len((cut / "corrupt_records.jsonl").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """`begun(workdir, config)`: the folder of a run that has begun."""
    data = half_hour_dataset(tmp_path_factory.mktemp("data") / "half_hours")

    def begin(workdir: Path) -> Config:
        config = short_config(data)
        datasets = open_datasets(config.data)
        write_config(workdir, config, data_spec(config.data, datasets))
        write_data(workdir, datasets)
        return config

    return begin


def check(workdir: Path, config: Config) -> None:
    check_same(workdir, config)
    datasets = open_datasets(config.data)
    check_same_data(workdir, config, data_spec(config.data, datasets), datasets)


def at(config: Config, *paths: Path | str) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, paths=tuple(map(str, paths))))


def test_paths_may_change_and_records_may_not(begun, tmp_path) -> None:
    config = begun(tmp_path / "run")
    data = Path(config.data.paths[0])
    check(tmp_path / "run", at(config, f"{data}/"))
    (tmp_path / "link").symlink_to(data)
    check(tmp_path / "run", at(config, tmp_path / "link"))
    other = half_hour_dataset(tmp_path / "same")
    check(tmp_path / "run", at(config, other))
    shard = next(other.glob("*train*"))
    records = [*ArrayRecordDataSource([str(shard)])]
    records[4] = records[9]
    writer = ArrayRecordWriter(str(shard), "group_size:1,zstd:1")
    for record in records:
        writer.write(record)
    writer.close()
    with pytest.raises(UserError, match=f"{other} does not hold what the run in .* began with, at {data}: its shards"):
        check(tmp_path / "run", at(config, other))
    with pytest.raises(UserError, match=r"names 2 datasets; the run in .* began with 1"):
        check(tmp_path / "run", at(config, data, data))


def test_the_order_of_the_datasets_may_not_change(tmp_path) -> None:
    data = half_hour_dataset(tmp_path / "one")
    write_dataset(tmp_path / "two", "two", CHANNELS, half_hour_windows(people=9))
    config = at(short_config(data), data, tmp_path / "two")
    datasets = open_datasets(config.data)
    write_config(tmp_path / "run", config, data_spec(config.data, datasets))
    write_data(tmp_path / "run", datasets)
    check(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"in another order, which the data order follows: they were .*one, .*two"):
        check(tmp_path / "run", at(config, tmp_path / "two", data))


def test_a_run_without_fingerprints_needs_its_earlier_paths_once(begun, tmp_path) -> None:
    config = begun(tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    check(tmp_path / "run", at(config, f"{config.data.paths[0]}/"))
    other = shutil.copytree(config.data.paths[0], tmp_path / "other")
    with pytest.raises(UserError, match="Give these paths once"):
        check(tmp_path / "run", at(config, other))
    (tmp_path / "run" / "data.json").write_text('{"datasets": [3]}')
    with pytest.raises(UserError, match=r"data.json is damaged"):
        check(tmp_path / "run", config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.batch_size": 4}, r"train.batch_size was 8, is 4 \(the data position counts batches of this size\)"),
        ({"model.size": "tiny"}, r"is 'tiny' \(the saved parameters are those of this network\)"),
        ({"train.grad_accum_steps": 4}, r"is 4 \(with several windows to a row, the windows of a row and their masks"),
        ({"seed": 1, "masking.share_of": "grid"}, r"seed was 0, is 1 \(it seeds .*; masking.share_of was"),
        ({"model.encoder_from": "runs/a"}, "which is not read again"),
    ],
)
def test_what_may_not_change_is_refused_with_its_reason(begun, tmp_path, changes, sentence) -> None:
    config = begun(tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        check_same(tmp_path / "run", with_changes(config, changes))


def test_what_has_no_effect_on_the_result_may_change(begun, tmp_path) -> None:
    config = with_changes(begun(tmp_path / "run"), {"rows.windows_per_row": 1})
    write_config(tmp_path / "run", config, data_spec(config.data, open_datasets(config.data)))
    changes = {
        "mesh.fsdp": 2,
        "data.workers": 3,
        "data.max_corrupt": 0,
        "language.tokenizer": "moved",
        "model.remat": "full",
        "train.grad_accum_steps": 1,
    }
    check_same(tmp_path / "run", with_changes(config, changes))


def test_every_key_may_change_or_has_a_reason() -> None:
    assert [key for key in flatten(Config()) if not key.startswith((*MAY_CHANGE, *REASONS))] == []
