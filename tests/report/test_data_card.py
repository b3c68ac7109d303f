"""The data card: its page, its pictures of days, and texts from data that try to be markup."""

import base64
import datetime as dt
import io
import itertools
import re

import matplotlib.image
import numpy as np
import pytest
from colours import contrast, linear
from pages import Page
from tiny_run import tiny_dataset

from lsm_jax.captions.caption import Captioner
from lsm_jax.channels import REGISTRY
from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.report.data_card import data_card_page, median_windows
from lsm_jax.report.days import caption_marks, draw_day
from lsm_jax.report.style import HUES, PALETTE
from lsm_jax.windows import Event, checked_window

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Ten people of three short windows."""
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=10)


def test_the_page_is_self_contained_and_shows_the_days(dataset, tmp_path, capsys):
    file = tmp_path / "card.html"
    assert main(["inspect", str(dataset.path), "--days", "4", "--html", str(file)]) == 0
    page = Page(file.read_text())
    page.assert_self_contained()
    assert page.tags.count("svg") == page.tags.count("image") == 4
    observed = f"{1 - dataset.card['values']['heart_rate']['missing_share']:.1%}"
    for text in (observed, "heart rate", "train 7 · validation 1 · test 2", "M (5)"):
        assert text in page.text, text
    printed = capsys.readouterr().out
    assert "heart_rate" in printed and observed in printed
    assert "30 person-days" in printed


def test_texts_from_the_data_are_shown_as_text(tmp_path):
    evil = "<script>alert(1)</script> $x^{$ [red]"
    windows = [
        checked_window(
            np.full((60, 1), 70.0), ["heart_rate"], participant=evil + str(number), start=START, labels={evil: evil},
            events=[Event(evil, "$\\frac{", 0, 60)],
        )[0]
        for number in range(3)
    ]  # fmt: skip
    write_dataset(tmp_path / "evil", "evil", ["heart_rate"], windows, description=evil)
    assert main(["inspect", str(tmp_path / "evil")]) == 0
    page = Page((tmp_path / "evil" / "data_card.html").read_text())
    page.assert_self_contained()
    assert page.text.count(evil) >= 4


@pytest.mark.parametrize(
    ("part", "damage"), [("values", {"heart_rate": {}}), ("gaps", {}), ("events", [1]), ("days", "x")]
)
def test_a_garbled_card_is_a_sentence(dataset, part, damage):
    damaged = open_dataset(dataset.path)
    damaged.card[part] = damage
    with pytest.raises(UserError, match=r"data_card\.json: the card lacks or garbles a part"):
        data_card_page(damaged, 0)


def test_days_are_of_different_people(dataset):
    windows = median_windows(dataset, 6)
    assert len({window.participant for window in windows}) == 6
    assert len(median_windows(dataset, 50)) == 30  # every day of everybody


def test_one_persons_days_are_shown_in_order(tmp_path):
    dataset = tiny_dataset(tmp_path / "one", people=1, days=9)
    starts = [window.start for window in median_windows(dataset, 4)]
    assert len({*starts}) == 4 and starts == sorted(starts)


def pixels(svg):
    """The image inside an SVG, from its top: rows by columns by red, green, blue, alpha."""
    (content,) = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    assert 'transform="scale(1 -1)' in svg  # the image is stored upside down
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))[::-1]


def test_cells_without_a_value_show_the_background(dataset):
    values = np.full((240, 2), [70.0, 5.5])
    values[120:, 0] = np.nan
    window, _ = checked_window(values, ["heart_rate", "glucose"], participant="x", start=START)
    drawing = draw_day(window, dataset.normalisation, "a day")
    alpha = pixels(drawing)[..., 3]
    height, width = alpha.shape
    assert alpha[height // 4, width // 4] == 1 and alpha[height // 4, 3 * width // 4] == 0
    assert (alpha[3 * height // 4] > 0.99).all()
    assert "fill: var(--missing)" in drawing


def test_colours_tell_low_from_high(dataset):
    moments = dataset.normalisation["heart_rate"]
    values = np.repeat([moments.mean - 2 * moments.sd, moments.mean + 2 * moments.sd], 120)[:, None]
    window, _ = checked_window(values, ["heart_rate"], participant="x", start=START)
    row = pixels(draw_day(window, dataset.normalisation, "a day"))[20]
    low, high = row[10], row[-10]
    assert low[2] > low[0] and high[0] > high[2]  # viridis: from blue to yellow


def test_a_day_without_a_value_can_be_drawn(dataset):
    window, _ = checked_window(np.full((1440, 2), np.nan), ["steps", "glucose"], participant="x", start=START)
    drawing = draw_day(window, dataset.normalisation, "a day")
    assert not pixels(drawing)[..., 3].any()
    assert {"00:00", "12:00", "steps", "glucose"} <= {*re.findall(r">([^<>]+)</text>", drawing)}


def colour_of(role, theme):
    """Red, green and blue of a role of the palette, 0..255."""
    return [*bytes.fromhex(PALETTE[role][theme].removeprefix("#"))]


def test_what_a_caption_speaks_of_is_marked_on_its_day(tmp_path):
    """A walk, and a peak of the heart rate at its end, of a recording that starts at 06:00 of the local clock."""
    values = np.full((720, 2), [60.0, 0.0])
    values[360:400, 0] = 110
    values[300:400, 1] = 80
    window, _ = checked_window(
        values, ["heart_rate", "steps"], participant="x", start=START + dt.timedelta(hours=4), utc_offset_minutes=120,
        events=[Event("activity", "walking", 300, 400)],
    )  # fmt: skip
    caption = Captioner(("statistical", "structural", "semantic"))(window)
    marks = {(mark.fact.kind, mark.fact.subject): mark for mark in caption_marks(window, facts_of(caption))}
    walk, peak = marks["activity", "walking"], marks["peak", "heart_rate"]
    assert (walk.first, walk.last) == (300, 400) and (peak.first, peak.last) == (380, 381)
    assert "11:00" in caption.sentences[walk.number - 1] and "12:40" in caption.sentences[walk.number - 1]
    assert "12:20" in caption.sentences[peak.number - 1] and peak.text == f"{peak.number}▲"
    assert not [mark for mark in marks.values() if mark.fact.kind == "mean"]  # of the whole day
    write_dataset(tmp_path / "day", "day", ["heart_rate", "steps"], [window])
    page = Page(data_card_page(open_dataset(tmp_path / "day"), 1))
    timed = Captioner(("structural", "semantic"))(window)
    assert all(sentence in page.text for sentence in timed.sentences)
    drawn = re.findall(r">([^<>]+)</text>", page.html)
    assert {mark.text for mark in caption_marks(window, facts_of(timed))} <= {*drawn}


def facts_of(caption):
    return [statement.facts for statement in caption.statements]


def test_a_short_recording_fills_its_picture(dataset):
    values = np.full((1440, 1), np.nan)
    values[605:700] = 70.0
    window, _ = checked_window(values, ["heart_rate"], participant="x", start=START)
    assert re.findall(r">(\d\d:\d\d)</text>", draw_day(window, dataset.normalisation, "a day")) == [
        "10:00", "11:00", "12:00",
    ]  # fmt: skip


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_from_the_paper_in_both_themes(theme):
    for role, least in (("ink", 7), ("soft", 4.5), ("blue", 4.5), ("vermilion", 4.5), *((hue, 2.5) for hue in HUES)):
        assert contrast(colour_of("paper", theme), colour_of(role, theme)) > least, role


# What the two common forms of colour blindness make of linear colours (Machado, Oliveira & Fernandes, 2009).
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("seen", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all", "protanopia", "deuteranopia"])
def test_hues_differ_for_the_colour_blind(theme, seen):
    def oklab(role):
        cones = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
        axes = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
        return axes @ np.cbrt(cones @ np.clip(seen @ linear(colour_of(role, theme)), 0, 1))

    for one, other in itertools.combinations(HUES, 2):
        assert np.linalg.norm(oklab(one) - oklab(other)) > 0.085, (one, other)


def test_the_registry_is_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", "--channels"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in REGISTRY)


@pytest.mark.parametrize(
    "arguments", [[], ["nowhere"], [".", "--days", "-1"], ["--channels", "."], ["--channels", "--days", "3"]]
)
def test_what_cannot_be_inspected_exits_with_2(arguments, capsys):
    assert main(["inspect", *arguments]) == 2
    assert "error:" in capsys.readouterr().err
