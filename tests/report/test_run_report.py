import json
import re

import pytest
from pages import Page
from run_results import evaluated, trained
from tiny_run import tiny_config, tiny_dataset

from lsm_jax.config import with_changes
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.errors import UserError
from lsm_jax.events import EventLog, event_file, read_events
from lsm_jax.report.render import offsets
from lsm_jax.report.run_report import write_report
from lsm_jax.train.workdir import write_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def workdir(dataset, tmp_path):
    config = tiny_config(dataset.path)
    write_config(tmp_path / "run", config, data_spec(config.data, open_datasets(config.data)))
    return tmp_path / "run"


def test_events_of_all_processes_are_one_timeline(workdir, capsys):
    logs = [EventLog(event_file(workdir, process), process, print) for process in (0, 1)]
    logs[1].report("read_retried", "a shard <b>was</b> read again", step=3, shard="x")
    logs[0].report("bad_step", "step 4 was skipped", step=4)
    logs[1].report("read_retried", "and again", step=5)
    assert capsys.readouterr().out.splitlines()[1] == "step 4 was skipped"
    with event_file(workdir, 1).open("a") as stream:
        stream.write('{"time": 1e300, "event": "x"}\n{"time": NaN}\n[]\n{"time": 1, "ev')
    assert [event["step"] for event in read_events(workdir)] == [3, 4, 5]
    page = page_of(workdir)
    assert "read retried 2, bad step 1" in page.text
    assert page.text.index("a shard <b>was</b> read again") < page.text.index("step 4 was skipped")
    page.assert_self_contained()


def test_a_line_that_was_cut_short_takes_no_later_event_with_it(tmp_path):
    log = EventLog(event_file(tmp_path, 0), 0, print)
    for step in (1, 2):
        log.report("bad_step", "skipped", step=step)
        with event_file(tmp_path, 0).open("a") as stream:
            stream.write('{"time": 1, "ev')
    log.report("finished", "finished", step=3)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2, 3]


def test_an_event_that_cannot_be_written_is_shown_all_the_same(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    EventLog(tmp_path / "file" / "events.jsonl", 0, print).report("bad_step", "step 4 was skipped")
    assert capsys.readouterr().out == "step 4 was skipped\n"


def page_of(workdir):
    return Page(write_report(workdir, workdir / "report.html").read_text())


def test_a_whole_run_on_one_page_that_fetches_nothing(workdir):
    evaluated(workdir)
    trained(workdir)
    page = page_of(workdir)
    page.assert_self_contained()
    for expected in (
        "42% lower",
        "error than linear (+32% to +52%)",
        "0.580",
        "+42.0% (+32.0% to +52.0%)",
        "3.25",
        "heart rate",
        "random imputation",
        "80%",
        "step 88.9%",
        "training",
        "validation",
    ):
        assert expected in page.text, expected
    assert ("alt", "reconstruction tiny") in page.attributes
    assert not re.search(r"not (evaluated|trained) yet", page.text, re.IGNORECASE)


def test_what_has_not_been_done_is_said(workdir):
    page = page_of(workdir)
    assert "Not trained yet" in page.text
    assert "Not evaluated yet: lsm evaluate --workdir run --suite generative" in page.text
    assert "No pictures yet" in page.text
    assert "tiny" in page.text


def test_losses_and_suites_are_those_of_the_objective(dataset, tmp_path):
    for objective, task, unit, suites in (
        ("masked_reconstruction", {}, "masked MSE (z)", ["generative"]),
        ("imputed_reconstruction", {}, "imputed cells included", ["generative"]),
        ("supervised", {"supervised.classes": ("F", "M")}, "cross entropy (nats / example)", ["probe"]),
        ("supervised", {"supervised.sd": 8.0}, "squared error (z)", ["probe"]),
        ("siglip", {}, "sigmoid loss", ["zeroshot", "fewshot", "retrieval"]),
        ("cap", {}, "captioning loss (nats / token)", ["captioning"]),
    ):
        workdir = tmp_path / unit.split()[0] / objective
        config = with_changes(tiny_config(dataset.path), {"objective.name": objective, **task})
        write_config(workdir, config, data_spec(config.data, open_datasets(config.data)))
        trained(workdir)
        page = page_of(workdir)
        assert re.findall(r"--suite (\w+)", page.text) == suites
        assert ("Reconstructions" in page.text) == objective.endswith("_reconstruction")
        assert unit in page.text
        if objective == "siglip":
            (workdir / "eval").mkdir()
            (workdir / "eval" / "zeroshot.json").write_text('{"provenance": {"step": 7}}')
            page = page_of(workdir)
            assert "eval/zeroshot.md: zeroshot, step 7. Training has since gone on to step 20." in page.text
            assert re.findall(r"--suite (\w+)", page.text) == ["fewshot", "retrieval"]
            (workdir / "eval" / "zeroshot.json").write_text("{}")
            with pytest.raises(UserError, match=r"zeroshot\.json: damaged"):
                page_of(workdir)


def test_probes_are_a_table_of_the_first_metric(workdir):
    (workdir / "eval").mkdir()
    row = {"dataset": "tiny", "task": "age", "unit": "person", "ci95": None, "examples": 40, "people": 12}
    results = [
        row | {"metric": metric, "method": method, "value": value}
        for metric, method, value in (
            ("pearson_r", "pretrained", 0.651), ("pearson_r", "class_blind", None), ("mae", "pretrained", 8.214)
        )
    ]  # fmt: skip
    content = {"results": results, "notes": ["tiny: sex: <b>left out</b>."], "provenance": {"step": 20}}
    (workdir / "eval" / "probe.json").write_text(json.dumps(content))
    page = page_of(workdir)
    assert "tinyagepersonpearson r 0.651-4012" in " ".join(page.text.split())
    assert "8.214" not in page.text and "<b>left out</b>" in page.text
    (workdir / "eval" / "probe.json").write_text('{"provenance": {"step": 20}}')
    with pytest.raises(UserError, match=r"probe\.json: damaged"):
        page_of(workdir)


def test_an_evaluation_that_training_has_left_behind_is_called_so(workdir):
    evaluated(workdir)
    trained(workdir)
    (workdir / "metrics.jsonl").write_text('{"step": 900, "loss": 0.1}\n')
    assert "Training has since gone on to step 900." in page_of(workdir).text


def test_a_dataset_that_has_moved_is_named(workdir, dataset):
    text = (workdir / "config.json").read_text().replace(str(dataset.path), "/nowhere/moved")
    (workdir / "config.json").write_text(text)
    assert "Dataset moved is not at hand" in page_of(workdir).text


def test_names_from_files_cannot_become_markup(workdir):
    evaluated(workdir, dataset_name="<script>alert(1)</script>")
    page = page_of(workdir)
    page.assert_self_contained()
    assert "<script>alert(1)</script>" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        write_report(tmp_path, tmp_path / "report.html")


def test_damaged_results_are_named(workdir):
    evaluated(workdir)
    (workdir / "eval" / "generative.json").write_text('{"results": [')
    with pytest.raises(UserError, match="lsm evaluate"):
        page_of(workdir)


@pytest.mark.parametrize("damaged", [{"mse": "low"}, {"mse": None}, {"unit": ["bpm"], "mae_natural": "x"}])
def test_results_that_are_no_numbers_are_damaged(workdir, damaged):
    evaluated(workdir)
    file = workdir / "eval" / "generative.json"
    content = json.loads(file.read_text())
    for row in content["results"]:
        row.update(damaged)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"generative\.json: damaged"):
        page_of(workdir)


@pytest.mark.parametrize(
    ("start", "end", "placed"),
    [(0, 0.5, "left:50.0%;right:25.0%"), (-0.5, 0, "left:25.0%;right:50.0%"), (-3.0, 3.0, "left:0.0%;right:0.0%")],
)
def test_a_bar_stays_inside_its_limits(start, end, placed):
    assert offsets(start, end, (-1.0, 1.0)) == placed


def test_bars_of_the_page_grow_from_zero(workdir):
    evaluated(workdir, improvement=-0.2)
    styles = [value for name, value in page_of(workdir).attributes if name == "style"]
    assert "left:0.0%;right:50.0%" in styles  # the widest of the page reaches its end
    assert ("class", "behind") in page_of(workdir).attributes
