"""Objects and folders in a store, against emulators of both kinds: what is there, whole, refused, gone."""

import concurrent.futures
import os
import platform
import sys
import types
from pathlib import Path

import pytest
from stores import BUCKET, emulator
from tiny_run import save_run, tiny_dataset, tiny_run

from lsm_jax import storage
from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.storage import Store, fetch_folder, local_copy, local_files, upload_folder
from lsm_jax.train import store_lock
from lsm_jax.train.mirror import RunStore, fetched_run
from lsm_jax.train.store_lock import StoreLock


@pytest.fixture(scope="module", params=["s3", "gs"])
def scheme(request):
    with emulator(request.param) as scheme:
        yield scheme


@pytest.fixture
def url(scheme, request, tmp_path, monkeypatch):
    """A folder of its own for each test, in the store and for copies."""
    monkeypatch.setenv("LSM_STORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "RETRY_SECONDS", (0.01,))
    return f"{scheme}://{BUCKET}/{request.node.originalname}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_dataset(folder)
    return folder


def fill(folder, **files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_comes_back_as_it_was_uploaded(url, tmp_path):
    here = fill(tmp_path / "here", **{"a.txt": "one", "below/b c+d.txt": "two", "empty": ""})
    (here / "large").write_bytes(b"x" * (storage._READ_AT_ONCE + 1))
    upload_folder(here, url)
    there = fetch_folder(url, tmp_path / "there")
    assert local_files(there) == local_files(here)
    assert all((there / name).read_bytes() == (here / name).read_bytes() for name in local_files(here))


def test_only_what_has_changed_is_fetched_again(url, tmp_path, monkeypatch):
    store, copy, fetched = Store(url), tmp_path / "copy", []
    upload_folder(fill(tmp_path / "here", a="one", b="two", c="three"), url)
    download = Store.download
    monkeypatch.setattr(
        Store,
        "download",
        lambda self, files, *args, **kw: fetched.append([*files]) or download(self, files, *args, **kw),
    )
    fetch_folder(url, copy)
    store.write("a", b"new")
    store.delete(["b"])
    (copy / "c").unlink()
    fetch_folder(url, copy)
    fetch_folder(url, copy)
    assert fetched == [["a", "b", "c"], ["a", "c"], []]
    assert [(copy / name).read_text() for name in local_files(copy)] == ["new", "three"]


def test_a_fetch_that_is_cut_short_goes_on_where_it_was(url, tmp_path, monkeypatch):
    upload_folder(fill(tmp_path / "here", **{f"file{number}": "x" for number in range(30)}), url)
    copy, client, calls = tmp_path / "copy", storage._client(url[:2]), []
    get_file = client.get_file

    def fails_after_twenty(path, file):
        calls.append(path)
        if len(calls) > 20:
            raise OSError("cut")
        get_file(path, file)

    monkeypatch.setattr(client, "get_file", fails_after_twenty)
    with pytest.raises(RunError, match=r"the store does not answer \(OSError: cut\)"):
        fetch_folder(url, copy)
    arrived = len(local_files(copy))
    assert arrived >= 20 - storage._TRANSFERS
    calls.clear()
    monkeypatch.setattr(client, "get_file", lambda path, file: calls.append(path) or get_file(path, file))
    fetch_folder(url, copy)
    assert len(calls) == 30 - arrived
    assert len(local_files(copy)) == 30


def test_a_passing_error_is_tried_again(url, monkeypatch):
    client, failures = storage._client(url[:2]), [OSError("busy")]
    pipe_file = client.pipe_file

    def fails_once(path, content):
        if failures:
            raise failures.pop()
        pipe_file(path, content)

    monkeypatch.setattr(client, "pipe_file", fails_once)
    Store(url).write("a", b"one")
    assert Store(url).read("a") == b"one"


def test_an_upload_that_arrives_cut_is_tried_again_and_then_said(url, monkeypatch, tmp_path):
    """Otherwise a checkpoint with a cut file would be called whole."""
    client, cuts = storage._client(url[:2]), [1]
    pipe_file = client.pipe_file

    def cuts_some(path, content):
        pipe_file(path, content[:-1] if cuts and cuts.pop() else content)

    monkeypatch.setattr(client, "pipe_file", cuts_some)
    Store(url).upload({"a": fill(tmp_path, a="one") / "a"})
    assert Store(url).read("a") == b"one"
    cuts.extend([1, 1])
    with pytest.raises(RunError, match="/a arrived with 2 bytes instead of 3"):
        Store(url).write("a", b"one")


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\0"])
def test_an_object_keeps_its_last_bytes(url, end):
    """The last bytes of a checkpoint's files are arbitrary, and an emulator may take some for an end of line."""
    Store(url).write("a", b"one" + end)
    assert Store(url).read("a") == b"one" + end


@pytest.mark.parametrize("elsewhere", [True, False])
def test_another_run_is_refused_while_the_first_lives_and_takes_over_when_it_does_not(url, monkeypatch, elsewhere):
    told, lost = [], []

    def take(beat=2.0, replaced=""):
        tell = lambda event, sentence, **_: told.append((event, sentence))  # noqa: E731
        return StoreLock(Store(url), "token", tell, lost.append, beat, replaced)

    first = take(beat=0.05)
    if elsewhere:  # otherwise another copy on this host, that of a container or of another user
        monkeypatch.setattr(store_lock.socket, "gethostname", lambda: "elsewhere")
    here = f"process {os.getpid()} on {platform.node()}, since "
    with first:
        with pytest.raises(UserError, match=rf"{url} is in use by another run: {here}.* Stop that one or wait"):
            take().__enter__()
        assert [event for event, _ in told] == ["waiting_for_lock"]
        lock = Store(url).read("run.lock")
    assert Store(url).read("run.lock") is None
    Store(url).write("run.lock", lock)  # as a host leaves it that is lost
    with take(beat=0.05):
        assert told[-1][0] == "took_over" and here in told[-1][1]
    # Who has taken the dead holder's lock of the local copy need not wait.
    Store(url).write("run.lock", lock)
    told.clear()
    with take(beat=0.05, replaced="token"):
        assert [event for event, _ in told] == ["took_over"]
    assert not lost


def test_many_ask_and_one_fetches(url, tmp_path, monkeypatch):
    upload_folder(fill(tmp_path / "here", a="one", b="two"), url)
    client, calls = storage._client(url[:2]), []
    get_file = client.get_file
    monkeypatch.setattr(client, "get_file", lambda path, file: calls.append(path) or get_file(path, file))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: fetch_folder(url, tmp_path / "copy"), range(4)))
    assert len(calls) == 2


def test_a_damaged_or_hostile_object_does_not_arrive(url, tmp_path):
    store = Store(url)
    store.write("a", b"one")
    with pytest.raises(RunError, match=r"/a is not as it was uploaded, with 3 bytes"):
        store.download(store.files(), tmp_path / "copy", {"a": "0" * 64})
    assert local_files(tmp_path / "copy") == []
    with pytest.raises(UserError, match=r"may not hold `\.\.`"):
        local_copy(f"{url}/../../elsewhere", "data")


def test_a_transfer_that_arrives_damaged_is_tried_again(url, tmp_path, monkeypatch):
    """Otherwise a good checkpoint would be taken for a damaged one."""
    upload_folder(fill(tmp_path / "here", a="one"), url)
    client, calls = storage._client(url[:2]), []
    get_file = client.get_file

    def damages_the_first(path, file):
        get_file(path, file)
        calls.append(path)
        if len(calls) == 1:
            Path(file).write_bytes(b"on")

    monkeypatch.setattr(client, "get_file", damages_the_first)
    assert (fetch_folder(url, tmp_path / "copy") / "a").read_text() == "one"
    assert len(calls) == 2


def test_a_full_disk_is_said_before_the_fetch(url, tmp_path, monkeypatch):
    upload_folder(fill(tmp_path / "here", a="one"), url)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2))
    with pytest.raises(
        UserError, match=r"needs 3e-09 GB .* which has 2e-09 GB free\. Make room, or name another folder"
    ):
        fetch_folder(url, tmp_path / "copy")


def test_an_absent_bucket_is_named(url, scheme, tmp_path, capsys):
    with pytest.raises(UserError, match=f"there is no bucket {scheme}://absent. Make it, or name another."):
        Store(f"{scheme}://absent/run").write("a", b"one")
    assert main(["inspect", f"{scheme}://absent/data"]) == 2
    assert f"there is no bucket {scheme}://absent" in capsys.readouterr().err
    with pytest.raises(UserError, match="name a bucket"):
        Store(f"{scheme}://")


def test_a_refused_caller_is_told_how_to_log_in(url, scheme, monkeypatch):
    if scheme == "s3":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        storage._client.cache_clear()
    else:  # the emulator takes everyone

        def refuses(*_, **__):
            raise OSError("Forbidden: https://storage.googleapis.com/storage/v1/b/bucket/o")

        monkeypatch.setattr(storage._client(scheme), "find", refuses)
    login = {"s3": "`aws configure`", "gs": "`gcloud auth application-default login`"}[scheme]
    with pytest.raises(UserError, match=rf"the store refuses access \(.*\). Log in with {login}"):
        Store(url).files()
    storage._client.cache_clear()


def test_a_missing_extra_and_an_unknown_store_are_named(url, scheme, monkeypatch, capsys):
    storage._client.cache_clear()
    monkeypatch.setitem(sys.modules, storage._CLIENTS[scheme][0], None)
    with pytest.raises(UserError, match=rf"{scheme}:// needs the extra `stores`: pip install -e '\.\[stores\]'"):
        Store(url)
    with pytest.raises(SystemExit):
        main(["inspect", "hdfs://host/data"])
    assert "hdfs://host/data: no such kind of store; gs:// and s3:// are known." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["zeroshot", "--workdir", "w", "--data", "d", "--prompts", f"{url}/p.toml"])
    assert "a file on this machine is needed here" in capsys.readouterr().err


def test_a_dataset_without_its_marker_is_not_there(url, dataset, tmp_path):
    upload_folder(dataset, url)
    opened = open_dataset(url)
    assert len(opened.source("train")) == len(open_dataset(dataset).source("train"))
    Store(url).write("old-shard", b"of an earlier dataset")
    Store(url).delete(["dataset_info.json"])  # as an upload leaves it that was cut short
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        open_dataset(url)
    upload_folder(dataset, url)
    assert "old-shard" not in Store(url).files()
    assert open_dataset(url).card == opened.card


def test_a_dataset_is_made_and_inspected_in_a_store(url, capsys):
    command = ["synth", "--people", "4", "--days", "1", "--out", url]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{url}: 4 people" in printed and f"uploaded to {url}" in printed
    assert main(command) == 2
    assert f"{url} holds a dataset already; pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main(["inspect", url]) == 0
    assert b"<html" in Store(url).read("data_card.html")
    assert main(["ingest", "--format", "table", "--source", "absent", "--out", url]) == 2
    assert "give --salt, the key of the pseudonyms" in capsys.readouterr().err


def test_a_dataset_does_not_replace_what_is_none(url, capsys):
    Store(f"{url}/runs/first").write("config.json", b"{}")
    for options in (["--out", url], ["--out", f"{url}/data", "--ground-truth", f"{url}/runs"]):
        assert main(["synth", "--people", "4", "--days", "1", "--overwrite", *options]) == 2
        sentence = f"{options[-1]} exists and is not a dataset; choose another {options[-2]}."
        assert sentence in capsys.readouterr().err
        assert [*Store(url).files()] == ["runs/first/config.json"]


@pytest.mark.parametrize(("data", "truth"), [("a", "a"), ("a", "a/truth"), ("a/data", "a")])
def test_ground_truth_inside_a_dataset_in_a_store_is_refused(url, data, truth, capsys):
    places = ["--out", f"{url}/{data}", "--ground-truth", f"{url}/{truth}"]
    assert main(["synth", "--people", "4", "--days", "1", *places]) == 2
    assert f"--ground-truth {url}/{truth} and --out {url}/{data} must lie apart" in capsys.readouterr().err
    assert not Store(url).files()


def test_a_sentence_names_the_url_and_not_the_copy(url, capsys):
    assert main(["report", "--workdir", url]) == 2
    assert f"{url} is not the folder of a run" in capsys.readouterr().err


def test_the_page_of_a_run_in_a_store_reads_its_checkpoint(url, dataset, tmp_path):
    save_run(tiny_run(dataset), tmp_path / "run")
    for name in ("checkpoints", "no checkpoint yet"):
        run = f"{url}/{name}"
        upload_folder(tmp_path / "run", run)
        if name != "checkpoints":
            Store(run).delete([file for file in Store(run).files() if file.startswith("checkpoints/")])
        assert main(["report", "--workdir", run]) == 0
        page = Store(run).read("report.html").decode()
        assert ("has no whole checkpoint" in page) == (name != "checkpoints")


def test_a_damaged_copy_is_fetched_again_and_the_store_keeps_its_checkpoint(url, dataset, tmp_path):
    save_run(tiny_run(dataset), tmp_path / "run")
    upload_folder(tmp_path / "run", url)
    copy = fetched_run(url)
    damaged = copy / "checkpoints/7/_METADATA"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    assert (fetched_run(url) / "checkpoints/7/_METADATA").read_bytes() == whole
    damaged.write_bytes(whole[:-1])
    store = RunStore(url, copy)
    assert store.fetch(7) is None and damaged.read_bytes() == whole and store.steps() == [7]


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(url, tmp_path):
    for step in (1, 2, 3):
        Store(url).write(f"checkpoints/{step}/manifest.json", b"{}")
    store = RunStore(url, tmp_path / "copy")
    store.prune(2, damaged=[3])
    assert store.steps() == [1, 2, 3]
    store.prune(2)
    assert store.steps() == [2, 3]


def test_messages_that_were_not_uploaded_survive_the_next_start(url, tmp_path):
    copy = tmp_path / "copy"
    begun, stored, unsent = ('{"event": "begun"}\n', '{"event": "saved"}\n', '{"event": "hang"}\n')
    Store(url).write("events.jsonl", (begun + stored).encode())
    fill(copy, **{"events.jsonl": begun + unsent, "hang-0.txt": "stacks\n", "metrics.jsonl": "of lost steps\n"})
    store = RunStore(url, copy)
    store.fetch_small_files()
    assert (copy / "events.jsonl").read_text() == begun + stored + unsent
    assert local_files(copy) == ["events.jsonl", "hang-0.txt"]
    store.upload_small_files()
    assert Store(url).read("hang-0.txt") == b"stacks\n" and unsent.encode() in Store(url).read("events.jsonl")
    Store(url).write("events.jsonl", b'{"event": "another run"}\n')
    RunStore(url, copy).fetch_small_files()
    assert (copy / "events.jsonl").read_text() == '{"event": "another run"}\n'


def test_an_export_replaces_an_export_and_nothing_else(url, dataset, tmp_path, capsys):
    save_run(tiny_run(dataset), tmp_path / "run")
    command = ["export", "--workdir", str(tmp_path / "run"), "--data", str(dataset), "--out"]
    upload_folder(tmp_path / "run", f"{url}/run")
    before = Store(f"{url}/run").read("config.json")
    assert main([*command, f"{url}/run"]) == 2
    assert f"{url}/run exists and is not an export" in capsys.readouterr().err
    assert Store(f"{url}/run").read("config.json") == before
    Store(f"{url}/export").write("card.json", b"{}")
    assert main([*command, f"{url}/export"]) == 2
    assert "not an export" in capsys.readouterr().err
    Store(f"{url}/export").write("card.json", b'{"format": "lsm_jax onnx 1"}')
    Store(f"{url}/export").write("model.onnx", b"of an earlier export")
    assert main([*command, f"{url}/export"]) == 0
    assert Store(f"{url}/export").read("model.onnx") is None
    assert b"safetensors" in Store(f"{url}/export").read("card.json")


def test_the_hub_takes_no_export_in_a_store(url, dataset, tmp_path, capsys):
    save_run(tiny_run(dataset), tmp_path / "run")
    command = ["export", "--workdir", str(tmp_path / "run"), "--out", f"{url}/export", "--push-to-hub", "some/model"]
    assert main(command) == 2
    assert "name one in --out" in capsys.readouterr().err
    assert not Store(f"{url}/export").files()


def test_a_run_in_a_store_is_evaluated_and_embedded_there(url, dataset, capsys, tmp_path, monkeypatch):
    run, data = f"{url}/run", f"{url}/data"
    upload_folder(dataset, data)
    save_run(tiny_run(dataset), tmp_path / "run")
    upload_folder(tmp_path / "run", run)
    # A later checkpoint that was never uploaded whole.
    for name in local_files(tmp_path / "run/checkpoints/7"):
        if name != "manifest.json":
            Store(run).write(f"checkpoints/9/{name}", (tmp_path / "run/checkpoints/7" / name).read_bytes())
    assert main(["embed", "--workdir", run, "--data", data, "--split", "test", "--out", f"{url}/out/e.parquet"]) == 0
    assert {"out/e.parquet", "out/e.people.parquet"} <= {*Store(url).files()}
    command = ["evaluate", "--workdir", run, "--data", data, "--max-windows", "2", "--batch-size", "2"]
    assert main(command) == 0
    assert "step 7" in Store(run).read("eval/generative.md").decode()
    assert f"uploaded to {run}: eval/" in capsys.readouterr().out
    monkeypatch.setenv("LSM_STORE_CACHE", str(tmp_path / "another host"))  # this one has a good copy
    Store(run).write("checkpoints/7/_METADATA", b"damaged")
    assert main([*command, "--step", "7"]) == 2
    assert "7 is damaged" in capsys.readouterr().err
    assert main([*command, "--step", "8"]) == 2
    assert f"{run} has no checkpoint of step 8; it has 7." in capsys.readouterr().err
