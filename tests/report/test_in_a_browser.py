"""The pages in a real browser: on a phone nothing scrolls sideways, and both schemes have readable text."""

import dataclasses

import numpy as np
import pytest
from browser import measured, needs_browser
from colours import contrast
from run_results import evaluated, evaluation, trained, write
from tiny_run import CHANNELS, tiny_config, tiny_windows

from lsm_jax.cli.main import main
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.report.scaling import ScaledRun, scaling, scaling_page
from lsm_jax.train.workdir import write_config
from lsm_jax.windows import Event

PHONE, MIN_CONTRAST = 390, 4.5  # pixels; WCAG 2.2, level AA


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every kind of page: data card with captions of days, report of a run, score card, scaling."""
    folder = tmp_path_factory.mktemp("pages")
    events = (Event("mood", "calm", 30, 31), Event("activity", "a walk by the river", 90, 150))
    windows = (dataclasses.replace(window, events=events) for window in tiny_windows())
    write_dataset(folder / "tiny", "tiny", CHANNELS, windows)
    dataset = open_dataset(folder / "tiny")
    config = tiny_config(dataset.path)
    write_config(folder / "run", config, data_spec(config.data, open_datasets(config.data)))
    evaluated(folder / "run")
    trained(folder / "run")
    errors = np.random.default_rng(0).uniform(0.2, 2.0, 20)
    runs = [write(folder / f"run_{number}", generative=evaluation(errors * number)) for number in (1, 2)]
    for arguments in (
        ["inspect", str(dataset.path), "--html", str(folder / "card.html")],
        ["report", "--workdir", str(folder / "run")],
        ["compare", *runs, "--out", str(folder)],
    ):
        assert main(arguments) == 0
    curves = {share: ((1e12 * share, 1 / share), (2e12 * share, 0.5 / share)) for share in (1, 2, 3, 4)}
    grid = [
        ScaledRun(f"size={size},share={share}", size, 10**width, 100.0 * share, 2e12, 1e6, 10, 0.5 / share, curve, {})
        for width, size in enumerate(("tiny", "small"), 4)
        for share, curve in curves.items()
    ]
    files = [(folder / name).read_text() for name in ("card.html", "run/report.html", "compare.html")]
    return [*files, scaling_page(scaling(grid, "validation_loss"))]


@needs_browser
def test_pages_fit_a_phone_and_can_be_read_in_both_schemes(pages, tmp_path):
    for schemes in measured(tmp_path, pages, PHONE):
        for found in schemes.values():
            assert found["visible"] == PHONE and found["width"] == PHONE
            assert found["wide"] == []
            assert len(found["texts"]) >= 3  # ink, soft and what is coloured
            for text, colour, background in found["texts"]:
                assert contrast(colour[:3], background[:3]) >= MIN_CONTRAST, (text, colour, background)
        assert schemes["light"]["background"] == "rgb(244, 246, 248)"
        assert schemes["dark"]["background"] == "rgb(17, 21, 27)"
