"""`lsm bench` end to end at tiny sizes: what the files hold. Never how fast anything was."""

from __future__ import annotations

import concurrent.futures
import json
import math
from pathlib import Path

import pytest
from tiny_run import tiny_dataset

from lsm_jax.cli import main as command
from lsm_jax.errors import RunError
from lsm_jax.nn.attention import attention
from lsm_jax.tools.bench import attention as bench_attention
from lsm_jax.tools.bench import harness
from lsm_jax.tools.bench.harness import why_no_torch
from lsm_jax.tools.bench.settings import AttentionBench
from lsm_jax.tools.plan import plan as planning

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lsm2.py"


def bench(folder: Path, kind: str, *options: str) -> dict:
    assert command.main(["bench", kind, "--out", str(folder), "--repeats", "2", *options]) == 0
    report = json.loads((folder / f"{kind}.json").read_text())
    assert {"cpu", "cores", "memory_bytes", "load_average"} <= set(report["machine"])
    assert {"python", "jax", "jaxlib"} <= set(report["versions"])
    assert report["settings"]["repeats"] == 2
    for result in report["results"]:
        assert result["spread"]["rounds"] == 2
        assert all(math.isfinite(value) for value in result.values() if isinstance(value, float))
    return report


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["reference", "jax", *(["torch"] if not why_no_torch() else [])]
    report = bench(
        tmp_path, "attention", "--tokens", "24,32", "--visible", "1,0.25", "--heads", "2", "--head-size", "8",
        "--dtype", "float32", "--only", ",".join(names),
    )  # fmt: skip
    assert "times faster than" in capsys.readouterr().out
    rows = [(r["tokens"], r["visible"], r["direction"], r["name"]) for r in report["results"]]
    assert rows == [
        (tokens, visible, direction, name)
        for tokens in (24, 32)
        for visible in (1.0, 0.25)
        for direction in ("forward", "forward_backward")
        for name in names
    ]
    for result in report["results"]:
        count = result["tokens"] * result["visible"]
        products = {"forward": 2, "forward_backward": 6}[result["direction"]]
        assert result["gflops"] * 1e9 * result["seconds"] == pytest.approx(products * 2 * 2 * 8 * count**2)
        assert set(result["times_faster_than"]) == {*names} - {result["name"]}
        assert (result["peak_bytes"] or 0) > 0 or result["name"] == "torch"


@pytest.mark.parametrize(
    "words", [["bench", "attention"], ["plan", "--config", f"{CONFIGS}:quickstart", "--topology", "v5e:2x2"]]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_attention, "measure", lambda *_: pytest.fail("it measures"))
    monkeypatch.setattr(planning, "make_plan", lambda *_: pytest.fail("it compiles"))
    (tmp_path / "file").touch()
    assert command.main([*words, "--out", str(tmp_path / "file" / "results")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/file/results/{words[0].replace('bench', 'attention')}.json: cannot be written" in error
    assert "choose another --out" in error


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_attention, "attention", lambda *arguments: 1.01 * attention(*arguments))
    settings = AttentionBench(tokens=(16,), visible=(0.5,), only=("jax", "reference"), repeats=1)
    with pytest.raises(RunError, match=r"reference .* differs from jax"):
        bench_attention.measure(settings, tmp_path / "attention.json")
    assert not (tmp_path / "attention.json").exists()


def test_nothing_to_measure_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "attention.json").write_text("of an earlier run")
    assert command.main(["bench", "attention", "--only", "pallas_gpu", "--tokens", "16", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "nothing to measure: pallas_gpu: " in error
    assert "does not run on cpu" in error
    assert (tmp_path / "attention.json").read_text() == "of an earlier run"


def test_who_is_left_out_is_printed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--tokens", "16", "--visible", "1", "--head-size", "8"
    bench(tmp_path, "attention", *sizes, "--only", "reference,pallas_gpu")
    assert "pallas_gpu left out: model.attention='pallas_gpu' does not run on cpu." in capsys.readouterr().out


def test_float32_may_differ_by_what_the_platform_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPUs multiply float32 in TF32, so that implementations differ by more than on a CPU."""
    monkeypatch.setattr(bench_attention, "attention", lambda *arguments: 1.003 * attention(*arguments))
    settings = AttentionBench(tokens=(16,), visible=(0.5,), only=("jax", "reference"), repeats=1)
    with pytest.raises(RunError, match="differs"):
        bench_attention.measure(settings, tmp_path / "attention.json")
    monkeypatch.setattr(harness, "jax_platform", lambda: "gpu")
    assert bench_attention.measure(settings, tmp_path / "attention.json")["results"]


@pytest.mark.parametrize(("platform", "used"), [("cpu", 3), ("gpu", 1), ("tpu", 1)])
def test_accelerators_are_measured_one_at_a_time(platform: str, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "jax_platform", lambda: platform)
    monkeypatch.setattr(harness.jax, "devices", lambda: list(range(4)))
    assert harness.bench_devices(6) == list(range(used))


STEP = (
    "step", "--config", f"{CONFIGS}:paper", "--config.model.size=1x16x2x32+1x16x2x32",
    "--config.rows.decoder_length=36", "--config.data.window_minutes=60",
    "--config.data.channels=heart_rate,steps,rmssd,skin_temperature,altitude_sd,sdnn",
)  # fmt: skip
ON_FOUR_DEVICES = """
import sys
from lsm_jax.cli.main import main
folder, *step = sys.argv[1:]
options = "--only", "ours", "--missing", "0", "--repeats", "1"
for windows in ("1", "2"):
    assert main(["bench", *step, *options, "--batch-size", windows, "--out", f"{folder}/{windows}"]) == 0
heads = "--heads", "6", "--head-size", "8", "--tokens", "16", "--visible", "1", "--only", "reference", "--repeats", "1"
assert main(["bench", "attention", *heads, "--out", folder]) == 0
"""


def test_devices_that_divide_the_work_share_it_and_memory_is_of_all(tmp_path: Path, run_with_devices) -> None:
    printed = run_with_devices(ON_FOUR_DEVICES, str(tmp_path), *STEP, devices=4)
    assert [f"on {count} of 4 devices (cpu)" in printed for count in (1, 2, 3)] == [True] * 3
    alone, two = (json.loads((tmp_path / name / "step.json").read_text()) for name in "12")
    assert (alone["devices_used"], two["devices_used"]) == (1, 2)
    # A window and all parameters on each device.
    assert two["results"][0]["peak_bytes"] == pytest.approx(2 * alone["results"][0]["peak_bytes"], rel=0.1)


def test_pytorch_gets_the_masks_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_step = pytest.importorskip("lsm_jax.tools.bench.torch_step")
    visible: list[int] = []

    class Process:
        """Does nothing but count the visible tokens of the batches."""

        def submit(self, function, *arrays):
            if arrays:
                visible.append(int(arrays[0]["visible"].sum()))
            future: concurrent.futures.Future = concurrent.futures.Future()
            future.set_result(0.0)
            return future

    monkeypatch.setattr(torch_step, "process", lambda *_: Process())
    report = bench(tmp_path, *STEP, "--missing", "0.5", "--batch-size", "2", "--only", "ours,torch")
    (ours,) = (result for result in report["results"] if result["name"] == "ours")
    # The warm-up, then two rounds of an untimed and a timed step, of which ours returns the timed ones.
    assert len(visible) == 5
    assert ours["tokens_visible"] * 2 == pytest.approx((visible[2] + visible[4]) / 2)


def test_step(tmp_path: Path) -> None:
    report = bench(tmp_path, *STEP, "--missing", "0,0.5", "--batch-size", "2")
    expected = [("ours", 0.0), ("ours", 0.5), ("dense", 0.5), *([("torch", 0.5)] if not why_no_torch() else [])]
    results = {(result["name"], result["missing"]): result for result in report["results"]}
    assert sorted(results) == sorted(expected)
    rate = report["matrix_product_gflops"]["float32"]
    assert rate > 0
    for result in results.values():
        if result["name"] != "torch":  # PyTorch's step counts no useful FLOPs
            assert result["share_of_matrix_product"] == pytest.approx(result["gflops"] / rate)
        assert result["windows_per_second"] == pytest.approx(2 / result["spread"]["median"])
        assert result["peak_bytes"] > 0
    assert results["ours", 0.0]["visible"] == 1
    assert 0.4 < results["ours", 0.5]["visible"] < 0.8
    assert set(results["ours", 0.5]["times_faster_than"]) == {"missing 0", *(name for name, _ in expected[2:])}
    # The same model on the same batch under the same masks, with and without the positions in between.
    assert results["dense", 0.5]["first_loss"] == pytest.approx(results["ours", 0.5]["first_loss"], rel=1e-5)
    assert results["ours", 0.5]["left_out_share"] == 0


def test_inference(tmp_path: Path) -> None:
    report = bench(
        tmp_path, "inference", "--config", str(CONFIGS), "--variant", "base", "--missing", "0.5", "--windows", "6",
        "--batch-size", "4", "--config.model.size=1x16x2x32+1x16x2x32", "--config.data.window_minutes=60",
        "--config.data.channels=heart_rate,steps,rmssd",
    )  # fmt: skip
    packed, alone = report["results"]
    assert (packed["name"], alone["name"]) == ("packed", "one window to a row")
    assert {*packed["times_faster_than"]} == {"one window to a row"}
    for result in (packed, alone):
        assert result["windows_per_second"] == pytest.approx(6 / result["spread"]["median"])
        rate = report["matrix_product_gflops"]["float32"]
        assert result["share_of_matrix_product"] == pytest.approx(result["gflops"] / rate)
    # A layer's linear maps and attention of about half of 18 tokens a window, and the patch embedding.
    assert 1e-6 < packed["gflops"] * packed["spread"]["median"] / 6 < 1e-3


def test_input(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data")
    options = "--data", str(tmp_path / "data"), "--workers", "0", "--batch-size", "4", "--batches", "3"
    report = bench(tmp_path, "input", *options)
    assert [(result["name"], result["workers"]) for result in report["results"]] == [
        ("loader", 0),
        ("raw", None),
        ("copy", None),
    ]
    for result in report["results"]:
        assert result["windows_per_second"] == pytest.approx(4 * 3 / result["spread"]["median"])
        assert result["bytes_per_second"] > 0
        assert result["windows_per_cpu_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["attention", "--missing", "0.5"], "--missing is for `lsm bench step or inference`, not attention."),
        (["input", "--dtype", "float32"], "--dtype is for `lsm bench attention or step`, not input."),
        (["attention", "--config.seed=1"], "only `lsm bench step` and `lsm bench inference` read a configuration"),
        (["attention", "--only", "referense"], "'reference'"),
        (["step", "--variant", "bose", "--config", str(CONFIGS)], "'base'"),
        (["step", "--config", f"{CONFIGS}:bose"], "'base'"),
        (["inference", "--variant", "base", "--config", f"{CONFIGS}:open"], "leave out --variant base."),
        (["step", "--only", "pytorch", "--config", str(CONFIGS)], "'torch'"),
        (["input", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(arguments, sentence, tmp_path, capsys) -> None:
    assert command.main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "text"), [("--visible", "1.5"), ("--tokens", "0"), ("--dtype", "float64"), ("--workers", "-1")]
)
def test_values_out_of_range_are_refused(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["bench", "attention", f"{option}={text}"])
    assert end.value.code == 2
    assert repr(text) in capsys.readouterr().err
