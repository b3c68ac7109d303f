"""Upload to the Hugging Face Hub, against a Hub that is not there."""

import pytest
from tiny_run import save_run, tiny_dataset, tiny_run

from lsm_jax.cli.main import main
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.hub import push_to_hub

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def calls(monkeypatch):
    made = []

    class Api:
        def create_repo(self, name, **options):
            made.append(("create_repo", name, options))
            return f"https://hub.example/{name}"

        def upload_folder(self, **options):
            made.append(("upload_folder", options["repo_id"], options["folder_path"]))

    monkeypatch.setattr(hub, "HfApi", Api)
    return made


def test_the_folder_goes_to_a_private_repository(calls, tmp_path):
    assert push_to_hub(tmp_path, "someone/model") == "https://hub.example/someone/model"
    assert calls == [
        ("create_repo", "someone/model", {"private": True, "exist_ok": True}),
        ("upload_folder", "someone/model", str(tmp_path)),
    ]


def test_a_wrong_name_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="--push-to-hub a/b/c: "):
        push_to_hub(tmp_path, "a/b/c")


def test_a_wrong_name_is_said_before_the_export(tmp_path, capsys):
    run = tmp_path / "run"
    save_run(tiny_run(tiny_dataset(tmp_path / "data", people=4).path), run)
    assert main(["export", "--workdir", str(run), "--push-to-hub", "a/b/c"]) == 2
    assert "--push-to-hub a/b/c: " in capsys.readouterr().err
    assert not (run / "export").exists()


def test_without_a_network_the_export_stays(calls, tmp_path, monkeypatch):
    class ConnectError(Exception):  # that of the Hub's own library of requests is no OSError
        pass

    def unreachable(*_, **__):
        raise ConnectError("no network")

    monkeypatch.setattr(hub.HfApi, "create_repo", unreachable)
    with pytest.raises(RunError, match=r"is written, but could not be uploaded to someone/model \(no network\)"):
        push_to_hub(tmp_path, "someone/model")
