"""Checkpoints under damage: an undamaged one is restored exactly, a damaged one never."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding
from short_training import CHANNELS, program_and_batches, short_config

from lsm_jax.data.faults import CORRUPT_RECORDS, CorruptRecord
from lsm_jax.errors import UserError
from lsm_jax.events import read_events
from lsm_jax.train.checkpoints import Checkpoints, CheckpointState, saved_steps, verify
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import load_run, whole_steps
from lsm_jax.train.state import State


def state_at(step: int) -> State:
    params = {"head": {"kernel": jnp.full((3, 4), float(step)), "bias": jnp.arange(4.0) * step}}
    return State(
        step=jnp.int32(step),
        skipped=jnp.int32(step // 2),
        typical={"loss": jnp.float32(step)},
        params=params,
        opt_state=({"mu": jax.tree.map(lambda leaf: leaf + 1, params)}, ()),
        ema={},
        rng=jax.random.key_data(jax.random.key(step)),
    )


def shapes_of(state: State) -> State:
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)


class Reported(list[str]):
    """The sentences of a run's events, but for those that say that all is well."""

    def __call__(self, event: str, sentence: str, *, step: int | None = None, **details: Any) -> None:
        if event != "checkpoint_saved":
            self.append(sentence)


def save(folder: Path, *at: int, keep: int = 2) -> list[str]:
    reported = Reported()
    checkpoints = Checkpoints(folder, keep, reported)
    for step in at:
        checkpoints.save(CheckpointState(state_at(step), 10 * step, {"step": 1.5 * step}))
    checkpoints.close()
    return reported


def latest(folder: Path) -> tuple[CheckpointState | None, list[str]]:
    reported = Reported()
    checkpoints = Checkpoints(folder, 2, reported)
    saved = checkpoints.restore_latest(shapes_of(state_at(0)))
    checkpoints.close()
    return saved, reported


def assert_is(saved: CheckpointState | None, step: int) -> None:
    assert saved is not None
    assert (saved.position, saved.seconds["step"]) == (10 * step, 1.5 * step)
    jax.tree.map(np.testing.assert_array_equal, saved.state, state_at(step))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 1, 2, 3."""
    folder = tmp_path_factory.mktemp("saved") / "three"
    save(folder, 1, 2, 3, keep=3)
    return folder


def test_what_is_saved_comes_back(three: Path) -> None:
    saved, reported = latest(three)
    assert_is(saved, 3)
    assert not reported


def test_the_newest_verified_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(saved_steps(tmp_path)) == [3, 4]
    save(tmp_path, 5, keep=0)
    assert sorted(saved_steps(tmp_path)) == [4, 5]


def test_nothing_is_deleted_for_the_sake_of_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "_METADATA").write_text("{}")
    reported = save(tmp_path, 3)
    assert sorted(saved_steps(tmp_path)) == [1, 2, 3]
    assert "checkpoint 2 did not survive" in reported[0]
    save(tmp_path, 4)
    assert sorted(saved_steps(tmp_path)) == [3, 4]


def files_of(checkpoint: Path) -> list[Path]:
    return [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]


def hurt(file: Path, way: str, position: float) -> None:
    content = bytearray(file.read_bytes())
    at = int(position * max(len(content) - 1, 0))
    match way:
        case "delete":
            file.unlink()
        case "truncate":
            file.write_bytes(content[:at])
        case "empty":
            file.write_bytes(b"")
        case "append":
            file.write_bytes(content + b"\0")
        case "flip" if content:
            content[at] ^= 1 << (at % 8)
            file.write_bytes(content)


@settings(max_examples=30)
@given(data=st.data())
def test_no_damage_is_ever_restored(three: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("hurt") / "checkpoints"
    shutil.copytree(three, folder)
    file = data.draw(st.sampled_from([file.relative_to(three) for file in files_of(three / "3")]))
    way = data.draw(st.sampled_from(["delete", "truncate", "empty", "append", "flip"]))
    before = (folder / file).read_bytes()
    hurt(folder / file, way, data.draw(st.floats(0, 1)))
    unhurt = (folder / file).is_file() and (folder / file).read_bytes() == before
    saved, reported = latest(folder)
    if reported:
        assert_is(saved, 2)
        assert "checkpoint 3 is damaged" in reported[0]
        assert len(list(folder.glob("damaged-3-*"))) == 1
    else:
        # Only Orbax's stamp of the time of commit is not covered, and nothing restored depends on it.
        assert unhurt or file.name in {"_CHECKPOINT_METADATA", "commit_success.txt", "manifest.json"}
        assert_is(saved, 3)


def test_all_damaged_is_no_new_run(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / str(step) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"2 is damaged: manifest.json is missing.*--start-over"):
        latest(tmp_path)
    assert sorted(saved_steps(tmp_path)) == [1, 2]
    for step in (1, 2):
        (tmp_path / str(step)).rename(tmp_path / f"damaged-{step}-0")
    with pytest.raises(UserError, match=r"no whole checkpoint \(damaged-1-0; damaged-2-0\)"):
        latest(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"checksum": 1, "content": {}}', "[" * 9000])
def test_hostile_manifests_are_damage(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "1" / "manifest.json").write_text(text)
    assert verify(tmp_path / "1") == "manifest.json cannot be read"


def test_another_model_is_refused_by_parameter(three: Path) -> None:
    shapes = shapes_of(state_at(0))
    shapes.params["head"]["kernel"] = jax.ShapeDtypeStruct((3, 5), jnp.float32, sharding=shapes.rng.sharding)
    with pytest.raises(UserError, match=r"\[\[3, 4\], 'float32'\] at state/params/head/kernel"):
        Checkpoints(three, 3, Reported()).restore_latest(shapes)


_SAVES_UNTIL_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoints import Checkpoints, CheckpointState, Reported, state_at
checkpoints = Checkpoints(Path(sys.argv[1]), 2, Reported())
for step in range(1, 10**6):
    checkpoints.save(CheckpointState(state_at(step), 10 * step, {"step": 1.5 * step}))
"""


def test_a_kill_in_the_middle_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    moments = np.random.default_rng(0).uniform(0.0, 0.3, 2)
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", _SAVES_UNTIL_KILLED, str(tmp_path), here])
        begun = set(saved_steps(tmp_path))
        while process.poll() is None and not set(saved_steps(tmp_path)) - begun:
            time.sleep(0.005)
        time.sleep(moment)
        process.kill()
        process.wait()
        newest = max(saved_steps(tmp_path))
        saved, reported = latest(tmp_path)
        assert all("never finished" in sentence for sentence in reported)
        assert_is(saved, newest)
        shutil.rmtree(tmp_path)


def test_a_run_falls_back_and_where_nothing_is_whole_it_stops(
    half_hours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short_config(half_hours, "train.duration=8 steps")
    train(config, tmp_path)
    expected = load_run(tmp_path)
    folder = tmp_path / "checkpoints"
    hurt(max(files_of(folder / "8" / "d"), key=lambda file: file.stat().st_size), "flip", 0.5)
    with pytest.raises(UserError, match="checkpoint of step 6; it has 4, 8"):
        load_run(tmp_path, step=6)
    with pytest.raises(UserError, match="8 is damaged"):
        load_run(tmp_path, step=8)
    capsys.readouterr()
    assert load_run(tmp_path).step == 4
    assert re.search(
        r"checkpoint 8 is damaged \(.* has changed since it was written\); 4 is taken", capsys.readouterr().err
    )
    assert whole_steps(tmp_path) == [4]
    assert train(config, tmp_path) == 8
    early, late = (load_run(tmp_path, step).minutes for step in whole_steps(tmp_path))
    assert 0 < early < late
    assert json.loads((folder / "8" / "manifest.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path).params, expected.params)

    before = read_metrics(tmp_path)
    for step in (4, 8):
        (folder / str(step) / "manifest.json").write_text("")
    with pytest.raises(UserError, match=r"no whole checkpoint \(8 is damaged.*4 is damaged.*--start-over"):
        train(config, tmp_path)
    assert read_metrics(tmp_path) == before
    corrupt = CorruptRecord("half_hours", "fingerprint", "train", 3, "shard", "restored by now")
    (tmp_path / CORRUPT_RECORDS).write_text(json.dumps(dataclasses.asdict(corrupt)))
    assert train(config, tmp_path, start_over=True) == 8
    assert read_metrics(tmp_path / "earlier-0") == before
    assert (tmp_path / "earlier-0" / CORRUPT_RECORDS).is_file() and not (tmp_path / CORRUPT_RECORDS).exists()
    assert {record.get("corrupt_records", 0) for record in read_metrics(tmp_path)} == {0}
    assert {"4", "8"} <= {entry.name for entry in (tmp_path / "earlier-0" / "checkpoints").iterdir()}
    assert whole_steps(tmp_path) == [4, 8]
    assert "started_over" in [event["event"] for event in read_events(tmp_path)]


@pytest.mark.parametrize("text", [None, "not json"])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_run(tmp_path)


def test_averaged_parameters_are_what_leaves_a_run(half_hours: Path, tmp_path: Path) -> None:
    # The average decays by 2 / 11 after the first step, so that it differs from the parameters.
    for decay, name in ((0.9, "ema"), (0.0, "params")):
        changes = ("train.duration=2 steps", f"train.ema_decay={decay}")
        train(short_config(half_hours, *changes), tmp_path / name)
        program, _ = program_and_batches(half_hours, *changes)
        content = Checkpoints(tmp_path / name / "checkpoints", 2, Reported()).restore_latest(program.shapes)
        assert content is not None
        exported = load_run(tmp_path / name).params
        jax.tree.map(np.testing.assert_array_equal, exported, getattr(content.state, name))
    assert load_run(tmp_path / name).spec.channels == CHANNELS
