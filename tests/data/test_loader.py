"""Batches: how cells are decoded, and the same stream from every position and on every number of hosts."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_windows import CHANNELS, person, random_windows

from lsm_jax.data.loader import Loader, evaluation_batches
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import data_spec, datasets_with_weight, open_datasets
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.windows import checked_window


def take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
    return [next(loader) for _ in range(count)]


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.fixture
def loader_of(dataset, other_dataset, data_config):
    """`loader_of(**arguments)`: a loader of both datasets in crops of 300 minutes."""
    config = data_config(dataset, other_dataset, weights=(1.0, 2.0), window_minutes=300)
    datasets = [dataset, other_dataset]
    spec = data_spec(config, datasets)
    loaders = []

    def make(workers: int = 0, **arguments) -> Loader:
        reading = dataclasses.replace(config, workers=workers)
        arguments = {"seed": 5, "batch_size": 8} | arguments
        loaders.append(Loader(reading, datasets, spec, "train", **arguments))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def test_pairs_hold_two_windows_of_one_person_at_every_position_and_on_every_host(dataset, data_config):
    config = data_config(dataset)
    load = functools.partial(Loader, config, [dataset], data_spec(config, [dataset]), "train", seed=5, batch_size=6)
    with contextlib.closing(load()) as loader:
        single = np.concatenate([batch["values"] for batch in take(loader, 4)])
    with contextlib.closing(load(person_pairs=True)) as loader:
        pairs = take(loader, 8)
    values, people = (np.concatenate([batch[key] for batch in pairs]) for key in ("values", "person"))
    np.testing.assert_array_equal(values[::2], single)  # the first of each pair follows the data order
    assert (people[::2] == people[1::2]).all()
    assert len({*people.tolist()}) == 7
    assert (values[::2] != values[1::2]).any(axis=(1, 2)).all()
    person_of = {window.tobytes(): person for window, person in zip(values, people.tolist(), strict=True)}
    assert len(person_of) == 21  # all three days of each: partners vary, and a day has one person
    for index in (0, 1):
        with contextlib.closing(load(person_pairs=True, process_index=index, process_count=2, position=2)) as loader:
            (half,) = take(loader, 1)
        for key, rows in half.items():
            np.testing.assert_array_equal(rows, pairs[2][key][3 * index : 3 * index + 3], err_msg=key)


def test_a_batch_holds_z_scored_windows(dataset, data_config) -> None:
    config = data_config(dataset)
    spec = data_spec(config, [dataset])
    windows = {window.start: window for window in dataset.source("validation")}
    loader = Loader(config, [dataset], spec, "validation", seed=0, batch_size=len(windows))
    batch = next(loader)
    loader.close()
    seen = set()
    for row in range(len(windows)):
        # The three days of the one person: told apart by their weekday.
        (window,) = [
            w for w in windows.values() if (w.start + dt.timedelta(hours=2)).weekday() == batch["weekday"][row]
        ]
        seen.add(window.start)
        np.testing.assert_array_equal(batch["observed"][row], window.observed)
        expected = np.where(window.observed, (window.values - spec.mean) / spec.sd, 0)
        np.testing.assert_allclose(batch["values"][row], expected, atol=2e-5)
        assert not batch["values"][row][~window.observed].any()
        assert batch["start_minute"][row] == 0
    assert seen == set(windows)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "values": ("float32", (3, 1440, 3)),
        "observed": ("bool", (3, 1440, 3)),
        "start_minute": ("int32", (3,)),
        "weekday": ("int32", (3,)),
        "window_id": ("int32", (3,)),
    }
    assert batch["window_id"].tolist() == [0, 1, 2]


def test_a_channel_a_dataset_lacks_is_never_observed(loader_of) -> None:
    batch = next(loader_of(batch_size=24))
    # Channels: heart_rate, steps, skin_temperature (one device) and glucose, heart_rate (the other).
    glucose, steps = batch["observed"][:, :, 3].any(axis=1), batch["observed"][:, :, 1].any(axis=1)
    assert glucose.any()
    assert steps.any()
    assert not (glucose & steps).any()


def test_resuming_at_any_position_continues_the_stream(loader_of) -> None:
    whole = take(loader_of(), 7)
    for position in range(7):
        resumed = loader_of(position=position)
        for batch in whole[position:]:
            assert_same(next(resumed), batch)
        assert resumed.position == 7
    loader = loader_of()
    for position in (5, 0, 3):  # forwards and back
        loader.restore(position)
        assert loader.position == position
        assert_same(next(loader), whole[position])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_rows_of_all_hosts_are_the_global_batch(loader_of, hosts) -> None:
    whole = take(loader_of(position=2), 3)
    parts = [loader_of(position=2, process_index=host, process_count=hosts) for host in range(hosts)]
    for batch in whole:
        shares = [next(part) for part in parts]
        assert_same({key: np.concatenate([share[key] for share in shares]) for key in batch}, batch)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_balanced_rows_do_not_depend_on_the_number_of_hosts(loader_of, hosts) -> None:
    balance = RowBalancer.for_batch(16, windows_per_row=2, grad_accum_steps=2)
    assert balance.group_size == 8, "more than a host's share of two"
    plain, whole = (take(loader_of(batch_size=16, balance=given), 3) for given in (None, balance))
    parts = [
        loader_of(batch_size=16, balance=balance, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    for before, batch in zip(plain, whole, strict=True):
        shares = [next(part) for part in parts]
        assert_same({key: np.concatenate([share[key] for share in shares]) for key in batch}, batch)
        assert sorted(batch["window_id"]) == sorted(before["window_id"])
        for group in range(2):
            cells = [each["observed"].sum(axis=(1, 2))[8 * group :][:8] for each in (before, batch)]
            assert sorted(cells[0]) == sorted(cells[1])
            totals = [[part[micro::2].reshape(-1, 2).sum(axis=1) for micro in range(2)] for part in cells]
            assert np.ptp(totals[1]) <= np.ptp(totals[0])


def test_a_dataset_of_weight_0_is_not_sampled(dataset, other_dataset, data_config) -> None:
    config = data_config(dataset, other_dataset, weights=(1.0, 0.0))
    datasets = [dataset, other_dataset]
    assert datasets_with_weight(config, datasets) == [dataset]
    loader = Loader(config, datasets, data_spec(config, datasets), "train", seed=0, batch_size=12)
    glucose = next(loader)["observed"][:, :, 3]
    loader.close()
    assert not glucose.any(), "a channel that the other dataset alone has"


def test_processes_give_the_same_stream_as_threads(loader_of) -> None:
    whole = take(loader_of(position=1), 4)
    loader = loader_of(workers=2, position=1)
    for batch in whole:
        assert_same(next(loader), batch)


def test_random_crops_cover_the_day(loader_of) -> None:
    batches = take(loader_of(batch_size=16), 8)
    starts = np.concatenate([batch["start_minute"] for batch in batches])
    assert batches[0]["values"].shape[1] == 300
    assert starts.min() >= 0
    assert starts.max() <= 1140
    assert len(set(starts.tolist())) > 100


def test_a_crop_holds_the_steps_from_its_start_minute_on(dataset, data_config) -> None:
    config = data_config(dataset, window_minutes=300)
    spec = data_spec(config, [dataset])
    loader = Loader(config, [dataset], spec, "validation", seed=0, batch_size=6)
    batch = next(loader)
    loader.close()
    days = {(window.start + dt.timedelta(hours=2)).weekday(): window for window in dataset.source("validation")}
    for row in range(6):
        window, start = days[int(batch["weekday"][row])], int(batch["start_minute"][row])
        np.testing.assert_array_equal(batch["observed"][row], window.observed[start : start + 300])


def test_windows_shorter_than_the_batch_are_padded_with_unobserved_steps(tmp_path, data_config) -> None:
    write_dataset(tmp_path / "short", "short", CHANNELS, random_windows(3, 1, steps=100))
    config = data_config(open_dataset(tmp_path / "short"), window_minutes=240)
    datasets = open_datasets(config)
    loader = Loader(config, datasets, data_spec(config, datasets), "train", seed=0, batch_size=2)
    batch = next(loader)
    loader.close()
    assert batch["observed"][:, :100].any()
    assert not batch["observed"][:, 100:].any()


def test_a_dataset_on_a_coarser_grid_is_refused(tmp_path, data_config) -> None:
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    windows = [
        checked_window(np.full((288, 1), 5.0), ["glucose"], participant=person(n), start=start, minutes_per_step=5)[0]
        for n in range(3)
    ]
    write_dataset(tmp_path / "coarse", "coarse", ["glucose"], windows)
    config = data_config(open_dataset(tmp_path / "coarse"))
    datasets = open_datasets(config)
    loader = Loader(config, datasets, data_spec(config, datasets), "train", seed=0, batch_size=1)
    with pytest.raises(UserError, match="5 minutes per step"):
        next(loader)
    loader.close()


def test_a_batch_that_hosts_cannot_share_is_refused(loader_of) -> None:
    with pytest.raises(UserError, match="does not divide"):
        loader_of(batch_size=8, process_count=3)


@given(st.integers(1, 13), st.sampled_from([1440, 700, 300]), st.sampled_from([None, 1, 4, 100]))
def test_evaluation_yields_every_row_once_in_order(dataset, data_config, batch_size, minutes, limit) -> None:
    spec = data_spec(data_config(dataset, window_minutes=minutes), [dataset])
    source = dataset.source("test")
    seen = []
    for batch, infos in evaluation_batches(source, spec, batch_size, limit):
        assert len(batch["values"]) == batch_size
        assert not batch["observed"][len(infos) :].any()
        for row, info in enumerate(infos):
            window = source[info.index]
            assert info.participant == window.participant
            expected = window.observed[info.offset : info.offset + minutes]
            np.testing.assert_array_equal(batch["observed"][row], expected)
            np.testing.assert_array_equal(info.window.observed, expected)
            scaled = np.where(expected, (info.window.values - spec.mean) / spec.sd, 0)
            np.testing.assert_allclose(batch["values"][row], scaled, rtol=1e-4, atol=1e-4)
        seen += [(info.index, info.offset) for info in infos]
    rows = [(index, part * minutes) for index in range(len(source)) for part in range(1440 // minutes)]
    assert seen == (rows if limit is None or limit >= len(rows) else [row for row in rows if row in seen])
    assert len(seen) == min(len(rows), limit or len(rows))


def test_evaluation_reads_each_window_once_in_the_order_given(dataset, data_config, monkeypatch):
    source, reads = dataset.source("test"), []
    record = source.record
    monkeypatch.setattr(source, "record", lambda position: reads.append(position) or record(position))
    order = list(range(len(source)))[::-1][:3]
    batches = list(evaluation_batches(source, data_spec(data_config(dataset), [dataset]), 2, order=order))
    infos = [info for _, infos in batches for info in infos]
    assert [info.window.participant for info in infos] == [source.participants[position] for position in order]
    assert reads == order
