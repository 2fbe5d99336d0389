"""What all figures share: colours, type, and how they are written.

Colours are from Okabe and Ito (2008), which colour-blind people tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from raysegment.scan import Labels

BLUE, SKY, ORANGE, VERMILLION, GREY, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#8A8A8A", "#222222"
GREEN, PURPLE, YELLOW = "#009E73", "#CC79A7", "#F0E442"
LABEL_COLOURS = (ORANGE, SKY, GREEN, PURPLE, YELLOW, VERMILLION, BLUE)
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


def choose_colours(labels: Labels) -> list[str]:
    """A colour for each label: its own, else one that no other label has, as long as there are such."""
    own = labels.colours or (None,) * len(labels)
    given = [None if colour is None else "#{:02X}{:02X}{:02X}".format(*colour) for colour in own]
    free = cycle([colour for colour in LABEL_COLOURS if colour not in given] or LABEL_COLOURS)
    return [next(free) if colour is None else colour for colour in given]


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, its middle left out where it is long; what fonts may lack is escaped."""
    plain = "".join(
        letter if letter.isprintable() and ord(letter) < 0x250 else letter.encode("unicode_escape").decode()
        for letter in name
    )
    if len(plain) <= longest:
        return plain
    return plain[: longest // 2 - 1] + "…" + plain[-(longest - longest // 2) :]
