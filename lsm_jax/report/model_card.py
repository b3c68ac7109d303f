"""The model card of an export as the Markdown of its README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsm_jax.report.render import render


def model_card(card: Mapping[str, Any]) -> str:
    """The card's content (`lsm_jax.export.card.card_of`) in words and tables."""
    return render("model_card.md", card=card)
