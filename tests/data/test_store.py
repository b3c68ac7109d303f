"""Datasets: written completely or not at all, split by person, described as stored, and refused when damaged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_windows import CHANNELS, person, random_windows

from lsm_jax.config import DataConfig
from lsm_jax.data.card import gap_lengths
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import SPLITS, Dataset, assign_splits, open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.report.data_card import data_card_page


def read_all(folder: Path) -> dict[str, list]:
    dataset = open_dataset(folder)
    return {split: list(dataset.source(split)) for split in SPLITS}


def test_what_is_written_is_read_in_order_of_person_and_start(dataset: Dataset) -> None:
    written = {(window.participant, window.start): window for window in random_windows(10, 3)}
    read = read_all(dataset.path)
    assert sum(map(len, read.values())) == len(written)
    for windows in read.values():
        assert windows == sorted(windows, key=lambda window: (window.participant, window.start))
        for window in windows:
            original = written[window.participant, window.start]
            np.testing.assert_array_equal(window.observed, original.observed)
            np.testing.assert_allclose(window.values, original.values, rtol=0, atol=0.01)
            np.testing.assert_array_equal(window.values[:, 1], original.values[:, 1])
            assert (window.labels, window.events) == (original.labels, original.events)


def test_the_order_of_arrival_leaves_no_trace(dataset: Dataset, tmp_path: Path) -> None:
    windows = list(random_windows(10, 3))
    random.Random(3).shuffle(windows)
    write_dataset(tmp_path / "again", "small", CHANNELS, windows, description="ten people")
    for file in dataset.path.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_tfds_opens_it_without_tensorflow(dataset: Dataset) -> None:
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "source = tfds.builder_from_directory(sys.argv[1]).as_data_source('train')\n"
        "print(len(source), source[0]['participant'].decode(), len(source[0]['codes']), 'tensorflow' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code, str(dataset.path)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    first = dataset.source("train")[0].participant
    assert finished.stdout.split() == ["21", first, str(2 * 3 * 1440), "False"]


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60), st.integers(0, 1000))
def test_splits_have_their_shares_and_depend_on_nothing_but_the_people_and_the_seed(people, seed) -> None:
    splits = assign_splits(people, seed)
    assert splits == assign_splits(sorted(people, reverse=True), seed)
    counts = {split: list(splits.values()).count(split) for split in SPLITS}
    assert counts["train"] >= 1
    assert sum(counts.values()) == len(people)
    assert counts["test"] >= 1 or len(people) < 2
    assert counts["validation"] >= 1 or len(people) < 3
    assert abs(counts["test"] - 0.2 * len(people)) <= 1
    assert abs(counts["validation"] - 0.1 * len(people)) <= 1


def test_nobody_is_in_two_splits(dataset: Dataset) -> None:
    people = [{*dataset.source(split).participants} for split in SPLITS]
    assert [len(group) for group in people] == [7, 1, 2]
    assert len(set.union(*people)) == 10


def test_moments_are_those_of_the_training_split(dataset: Dataset) -> None:
    windows = read_all(dataset.path)["train"]
    values = np.concatenate([window.values for window in windows]).astype(np.float64)
    observed = np.concatenate([window.observed for window in windows])
    for column, name in enumerate(CHANNELS):
        seen = values[observed[:, column], column]
        moments = dataset.normalisation[name]
        assert moments.count == len(seen)
        np.testing.assert_allclose([moments.mean, moments.sd], [seen.mean(), seen.std()], rtol=1e-9)
    assert dataset.training_minutes == len(values)


def test_the_card_describes_the_windows(dataset: Dataset) -> None:
    windows = [window for split in read_all(dataset.path).values() for window in split]
    observed = np.stack([window.observed for window in windows])
    card = dataset.card
    assert (card["people"], card["windows"], card["days"]) == (10, 30, 30)
    assert card["missing_share"] == pytest.approx(1 - observed.mean(), abs=1e-6)
    by_hour = 1 - observed.reshape(30, 24, 60, 3).mean(axis=(0, 2))  # windows start at local midnight
    np.testing.assert_allclose(np.array(list(card["missing_by_hour"].values())).T, by_hour, atol=1e-4)
    tokens = observed.reshape(30, 144, 10, 3).any(axis=2).sum(axis=(1, 2))
    assert card["tokens_per_window"]["quantiles"]["50"] == np.median(tokens)
    assert np.sum(list(card["gaps"]["minutes"].values())) == (~observed).sum()
    assert card["labels"]["sex"]["values"] == {"M": 5, "F": 5}
    assert card["labels"]["age"]["max"] == 39
    assert card["events"]["sleep"]["asleep"] == {"count": 30, "minutes": 30 * 480}
    assert card["values"]["steps"]["max"] == max(window.values[:, 1].max() for window in windows)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=30))
def test_gaps_are_the_runs_of_missing_cells(cells) -> None:
    observed = np.array(cells)
    runs = []
    for column in range(2):
        text = "".join("o" if cell else "-" for cell in observed[:, column])
        runs += [(len(run), column) for run in text.split("o") if run]
    lengths, columns = gap_lengths(observed.T)
    assert list(zip(lengths.tolist(), columns.tolist(), strict=True)) == runs


def test_labels_of_days_are_counted_with_all_their_values(dataset: Dataset, tmp_path: Path) -> None:
    windows = list(read_all(dataset.path)["train"])[:6]  # three days of each person
    labels = [{"mood": "bad" if day == 0 else "good", "pain": float(day)} for _ in range(2) for day in range(3)]
    changed = [dataclasses.replace(window, labels=each) for window, each in zip(windows, labels, strict=True)]
    write_dataset(tmp_path / "days", "days", CHANNELS, changed)
    card = open_dataset(tmp_path / "days").card
    assert card["labels"]["mood"] == {"people": 2, "values": {"bad": 2, "good": 2}, "distinct": 2}
    assert (card["labels"]["pain"]["people"], card["labels"]["pain"]["mean"]) == (2, 1)


def test_a_study_of_one_person_has_a_warning(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", "one", CHANNELS, random_windows(1, 2))
    dataset = open_dataset(tmp_path / "one")
    assert any("test" in warning for warning in dataset.card["warnings"])
    assert len(dataset.source("test")) == 0
    with pytest.raises(UserError, match="1 people"):
        dataset.nonempty_source("test")


def test_a_failing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing():
        yield from random_windows(2, 1)
        raise RuntimeError("the reader broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_dataset(tmp_path / "out", "small", CHANNELS, failing())
    assert list(tmp_path.iterdir()) == []


def test_only_a_dataset_is_replaced_and_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_dataset(out, "small", CHANNELS, random_windows(3, 1))
    with pytest.raises(UserError, match="--overwrite"):
        write_dataset(out, "small", CHANNELS, random_windows(3, 1))
    write_dataset(out, "small", CHANNELS, random_windows(4, 1), overwrite=True)
    assert open_dataset(out).card["people"] == 4
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years")
    with pytest.raises(UserError, match="not a dataset"):
        write_dataset(tmp_path / "precious", "small", CHANNELS, random_windows(3, 1), overwrite=True)


@pytest.mark.parametrize(
    ("name", "channels", "windows", "sentence"),
    [
        ("Not A Name", CHANNELS, 1, "lower-case"),
        ("small", ("heart_rat",), 1, "heart_rate"),
        ("small", CHANNELS[:2], 1, "skin_temperature"),
        ("small", CHANNELS, 0, "no windows"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name, channels, windows, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        write_dataset(tmp_path / "out", name, channels, random_windows(windows, 1))
    assert list(tmp_path.iterdir()) == []


def use(folder: Path, config) -> None:
    """Everything a run, an evaluation and an inspection do with a dataset."""
    dataset = open_dataset(folder)
    for split in SPLITS:
        list(dataset.source(split))
    data_spec(config(dataset), [dataset])
    data_card_page(dataset, 0)


def test_a_dataset_that_was_cut_off_is_refused_file_by_file(dataset: Dataset, copy_of, data_config) -> None:
    folder = copy_of(dataset)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for part in (b"", whole[: len(whole) // 2]):
            file.write_bytes(part)
            if file.name == "features.json":
                use(folder, data_config)  # never read: it names Python classes to import
            else:
                with pytest.raises(UserError, match=str(folder)):
                    use(folder, data_config)
        file.write_bytes(whole)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        file.unlink()
        if file.name != "features.json":
            with pytest.raises(UserError, match=file.name):
                use(folder, data_config)
        file.write_bytes(whole)


def test_flipped_bytes_are_refused_or_harmless(dataset: Dataset, copy_of, data_config) -> None:
    folder = copy_of(dataset)
    draw = random.Random(0)
    for _ in range(16):
        file = draw.choice(sorted(folder.iterdir()))
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 4, 20])):
            damaged[draw.randrange(min(len(damaged), 50_000))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            use(folder, data_config)
        except UserError as error:
            assert str(folder) in str(error) or "channel" in str(error)
        file.write_bytes(whole)


def nodes(content, path=()):
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


@pytest.mark.parametrize("name", ["channels.json", "dataset_info.json", "normalisation.json", "data_card.json"])
@pytest.mark.parametrize("poison", [None, "../../etc/passwd", -3, 1e308, [[]], {}])
def test_a_value_of_another_kind_is_refused_or_harmless(dataset: Dataset, copy_of, data_config, name, poison) -> None:
    folder = copy_of(dataset)
    content = json.loads((folder / name).read_text())
    draw = random.Random(1)
    for path in draw.sample(list(nodes(content)), 3):
        damaged = json.loads(json.dumps(content))
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        if path:
            parent[path[-1]] = poison
        else:
            damaged = poison
        (folder / name).write_text(json.dumps(damaged))
        try:
            use(folder, data_config)
        except UserError as error:
            assert "\n" not in str(error)


def test_no_file_outside_the_folder_is_read(dataset: Dataset, copy_of, data_config) -> None:
    folder = copy_of(dataset)
    shard = next(folder.glob("*train*"))
    outside = folder.parent / "elsewhere"
    shard.rename(outside)
    shard.symlink_to(outside)
    with pytest.raises(UserError, match="plain file"):
        use(folder, data_config)
    info = json.loads((folder / "dataset_info.json").read_text())
    for name in ("../elsewhere", "/etc/passwd", "a/b"):
        (folder / "dataset_info.json").write_text(json.dumps(info | {"name": name}))
        with pytest.raises(UserError, match="not an ArrayRecord dataset"):
            use(folder, data_config)


def test_an_unknown_folder_and_split_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="train, validation, test"):
        dataset.source("dev")
    assert person(0) in {name for split in SPLITS for name in dataset.source(split).participants}


def test_a_smaller_share_of_the_training_people_is_part_of_a_larger(tmp_path: Path) -> None:
    windows = list(random_windows(people=20, days=1))
    write_dataset(tmp_path / "d", "d", CHANNELS, windows)
    whole = open_dataset(tmp_path / "d")
    config = DataConfig((str(tmp_path / "d"),))
    people: list[set[str]] = []
    for share in (0.01, 0.25, 0.5, 1.0):
        (dataset,) = open_datasets(dataclasses.replace(config, people_share=share))
        source = dataset.source("train")
        people.append({*source.participants})
        assert [source[position].participant for position in range(len(source))] == source.participants
        assert [source.record(position).participant for position in range(len(source))] == source.participants
        assert len(source.steps) == len(source.observed) == len(source)
        assert dataset.source("test").participants == whole.source("test").participants
        np.testing.assert_array_equal(data_spec(config, [dataset]).mean, data_spec(config, [whole]).mean)
    assert [len(each) for each in people] == [1, 4, 7, 14]
    assert all(small < large for small, large in itertools.pairwise(people))
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match=r"data\.people_share"):
            open_datasets(dataclasses.replace(config, people_share=share))
