"""What all figures share: colours, type, and how they are written.

Colours are from Okabe and Ito (2008), which colour-blind people tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

BLUE, SKY, ORANGE, VERMILLION, GREY, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#8A8A8A", "#222222"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.dpi": 120,
}
LONGEST_NAME = 36


@contextmanager
def open_figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in our style, written to `path` at the end as PNG; missing folders are made."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, its middle left out where it is long; what fonts may lack is escaped."""
    plain = "".join(
        letter if letter.isprintable() and ord(letter) < 0x250 else letter.encode("unicode_escape").decode()
        for letter in name
    )
    if len(plain) <= longest:
        return plain
    return plain[: longest // 2 - 1] + "…" + plain[-(longest - longest // 2) :]
