"""The one style of all figures, and the widths that a paper prints them in."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.pyplot as plt

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws and saves in the style of our figures.

    Fonts are 8 points, so that a figure of `ONE_COLUMN` or `TWO_COLUMNS` inches prints at its own size; colours are
    those of Okabe and Ito, which suit the colour-blind; PDF files hold text as text. Draw and save inside the context.
    """
    return plt.style.context(Path(__file__).with_name("isouq.mplstyle"))
