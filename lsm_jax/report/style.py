"""The palette and the matplotlib style of every page and figure.

The hues are those of Okabe and Ito (2008), which stay distinguishable with the common forms of colour blindness, a
little darker in the light theme and lighter in the dark one, so that lines and letters stand out from the paper.
Figures are drawn in the colours of the light theme. `inline_svg` replaces them with the CSS variables of the page, so a
figure follows the reader's theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Role: colour in the light theme and in the dark theme. Templates use a role as `var(--ROLE)`.
PALETTE: Mapping[str, tuple[str, str]] = {
    "ink": ("#1e2730", "#e5e8ec"),
    "soft": ("#5c6773", "#9ba6b2"),
    "line": ("#dfe3e8", "#37404b"),
    "paper": ("#ffffff", "#1a2028"),
    "wash": ("#f4f6f8", "#11151b"),
    "missing": ("#d3d8de", "#3c4652"),
    "blue": ("#0072b2", "#4aa0f2"),
    "vermilion": ("#c44f00", "#f0713a"),
    "green": ("#0a9d74", "#32d2a3"),
    "amber": ("#c48b00", "#f9b21f"),
    "purple": ("#9c3a72", "#b57ba6"),
    "sky": ("#4aa5de", "#a7e7fd"),
}
LIGHT: Mapping[str, str] = {role: light for role, (light, _) in PALETTE.items()}
HUES = ("blue", "vermilion", "green", "amber", "purple", "sky")

_STYLE: Any = {  # matplotlib's type stubs accept literal keys only
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # labels come from data: a dollar sign is text, not a formula
    "axes.edgecolor": LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["soft"],
    "axes.prop_cycle": matplotlib.cycler(color=[LIGHT[hue] for hue in HUES]),  # type: ignore[attr-defined]
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_RASTER_DPI = 110  # of images inside an SVG


def styled() -> Any:
    """A context manager and decorator in which matplotlib draws in the style of the pages."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes as `Figure.subplots` returns them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def hide_frame(axes: Axes) -> None:
    """Removes the four lines around a plot and its tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def inline_svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element for a page, which scales with its column and follows the page's theme."""
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE | {"svg.fonttype": "none", "svg.hashsalt": "lsm_jax"}):
        figure.savefig(stream, format="svg", facecolor="none", dpi=_RASTER_DPI, metadata=no_metadata)
    text = stream.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text[text.index("<svg") :])
    text = re.sub(r' width="[^"]*" height="[^"]*"', f' role="img" aria-label="{escape(description)}"', text, count=1)
    for role, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{role})")
    return Markup(text)
