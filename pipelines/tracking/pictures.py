"""The pictures of runs: where they are kept, the markdown that shows them, figures as images."""

from __future__ import annotations

import io
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image


def picture_path(key: str) -> str:
    """Return the path of a run's picture among its artifacts."""
    return f"pictures/{key}.png"


def picture_link(run_id: str, key: str) -> str:
    """Return the markdown that shows a run's picture."""
    return f"![{key}](get-artifact?run_uuid={run_id}&path={quote(picture_path(key))})"


def rendered(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return Image.open(buffer)
