"""`lsm inspect`: the terminal, the page, and texts from data that try to be markup."""

from __future__ import annotations

import datetime as dt
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lsm_jax.channels import REGISTRY
from lsm_jax.cli.main import main
from lsm_jax.data.store import write_dataset
from lsm_jax.report.data_card import typical_windows
from lsm_jax.report.pictures import day_picture
from lsm_jax.windows import Event, checked_window


class Elements(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_the_page_stands_alone_and_draws_the_days(dataset, tmp_path: Path, capsys) -> None:
    page = tmp_path / "card.html"
    assert main(["inspect", str(dataset.path), "--days", "4", "--html", str(page)]) == 0
    text = page.read_text()
    tags = Elements(text).tags
    assert tags.count("img") == 2 + 4
    assert "script" not in tags
    assert not re.search(r"""(src|href)=['"]?(?!['"]?data:)""", text)
    printed = capsys.readouterr().out
    assert "heart_rate" in printed
    assert "30 person-days" in printed


def test_texts_from_the_data_are_shown_as_text(tmp_path: Path, capsys) -> None:
    evil = "<script>alert(1)</script> $x^{$ [red]"
    windows = [
        checked_window(
            np.full((60, 1), 70.0), ["heart_rate"], participant=evil + str(number),
            start=dt.datetime(2024, 1, 1, tzinfo=dt.UTC), labels={evil: evil}, events=[Event(evil, "$\\frac{", 0, 60)],
        )[0]
        for number in range(3)
    ]  # fmt: skip
    write_dataset(tmp_path / "evil", "evil", ["heart_rate"], windows, description=evil)
    assert main(["inspect", str(tmp_path / "evil")]) == 0
    text = (tmp_path / "evil" / "data_card.html").read_text()
    assert "script" not in Elements(text).tags
    assert "&lt;script&gt;" in text


def test_days_are_of_different_people(dataset) -> None:
    windows = typical_windows(dataset, 6)
    assert len({window.participant for window in windows}) == 6
    assert len(typical_windows(dataset, 50)) == 10


def test_a_day_without_a_value_can_be_drawn(dataset) -> None:
    window, _ = checked_window(
        np.full((1440, 2), np.nan), ["steps", "glucose"], participant="x", start=dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    )
    assert day_picture(window, dataset.normalisation).startswith(b"\x89PNG")


def test_the_registry_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", "--channels"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in REGISTRY)


@pytest.mark.parametrize("arguments", [[], ["nowhere"], [".", "--days", "-1"]])
def test_what_cannot_be_inspected_exits_with_2(arguments, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    assert "error:" in capsys.readouterr().err
