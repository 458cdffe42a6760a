"""Draw figures as bitmaps with a bounded size, for trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from msh.runs.colours import FREE_COLOUR, colours_of
from msh.runs.ownership import owner_matrix, spaced
from msh.runs.words import shortened
from msh.subnetworks import NetworkState
from msh.tracking.figures import Chart, owner_indices

Bitmaps = Mapping[str, Mapping[str, Image.Image]]
"""Name to {caption: bitmap}; "" for no caption."""
PAGE, INK = "#ffffff", "#222222"
TEXT, PAD, BAR, LENGTH = 13, 8, 24, 560
"""Heights of letters and bars, space around, and length of bars, in pixels."""
WIDE, CELL, SIDE = 1400, 64, 256
"""Most pixels for the cells of a matrix, for one of them, and for a side of an owner map."""
NAMES = 24
"""Most names of tasks in a legend."""


def draw(chart: Chart) -> Image.Image:
    """Draw a chart: names on the left and above, a legend on the right, labels in the boxes that have room."""
    cell = min(CELL, WIDE // max(len(chart.rows), len(chart.columns), 1))
    wide, high, middle = (cell, cell, 0.5) if chart.columns else (LENGTH, BAR, 0.0)  # pixels for 1; of the first column
    rows, columns = ([shortened(name, 40) for name in names] for names in (chart.rows, chart.columns))
    legend = [*chart.legend.items()]
    if len(legend) > NAMES + 1:
        legend = [*legend[:NAMES], (f"and {len(legend) - NAMES - 1} more tasks", PAGE), legend[-1]]
    left, top = _widest(rows) + 2 * PAD, _widest(columns) + 2 * PAD
    right = left + wide * max(1, len(columns)) + 2 * PAD
    height = max(top + high * len(rows), len(legend) * (TEXT + 5) + PAD) + PAD
    image = Image.new("RGB", (right + _widest([name for name, _ in legend]) + TEXT + 2 * PAD, height), PAGE)
    pen = ImageDraw.Draw(image, "RGBA")  # blends colours that have an alpha
    for box in chart.boxes:
        ends = [left + round((box[end] + middle) * wide) for end in ("left", "right")]
        foot = top + box["row"] * high
        if ends[1] > ends[0]:
            pen.rectangle((ends[0], foot + 2, ends[1] - 1, foot + high - 3), box["colour"])
        if chart.label and _widest([box[chart.label]]) <= ends[1] - ends[0]:
            pen.text((sum(ends) / 2, foot + high / 2), box[chart.label], INK, _font(), "mm")
    for place, name in enumerate(rows):
        pen.text((left - PAD, top + (place + 0.5) * high), name, INK, _font(), "rm")
    for place, name in enumerate(columns):
        _write_upwards(image, (left + round((place + 0.5) * wide), top - PAD), name)
    for place, (name, colour) in enumerate(legend):
        foot = PAD + place * (TEXT + 5)
        pen.rectangle((right, foot + 2, right + TEXT - 2, foot + TEXT), colour)
        pen.text((right + TEXT + 4, foot), name, INK, _font())
    return image


def owner_map(state: NetworkState, layer: str) -> Image.Image:
    """Draw a layer's owner map: a dot for each weight in its owner's colour; rows are output units, columns inputs.

    Of more than SIDE rows or columns, evenly spaced ones are drawn.

    Args:
        state: the network's.
        layer: tensor name.
    Raises:
        KeyError: there is no such layer.
    """
    shown = owner_matrix(state, layer)
    ids = shown[spaced(shown.shape[0], SIDE)][:, spaced(shown.shape[1], SIDE)].numpy()  # (rows, columns)
    palette = [_on_page(FREE_COLOUR), *map(_on_page, colours_of([*state.tasks]).values())]
    image = Image.fromarray(np.array(palette, np.uint8)[owner_indices(state)[ids]])
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def same_size(images: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
    """Enlarge images to the largest one's size, with their aspect ratios."""
    size = max(i.width for i in images.values()), max(i.height for i in images.values())
    how: dict[str, Any] = {"method": Image.Resampling.NEAREST, "color": PAGE, "centering": (0, 0)}
    return {name: i if i.size == size else ImageOps.pad(i, size, **how) for name, i in images.items()}


def _write_upwards(image: Image.Image, foot: tuple[int, int], text: str) -> None:
    line = Image.new("RGB", (_widest([text]) + 2, TEXT + 3), PAGE)
    ImageDraw.Draw(line).text((0, 0), text, INK, _font())
    turned = line.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))


def _widest(texts: Sequence[str]) -> int:
    return max((round(_font().getlength(text)) for text in texts), default=0)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _on_page(colour: str) -> tuple[int, ...]:
    """Blend "#rrggbb" or "#rrggbbaa" with the page's white: (red, green, blue)."""
    *rgb, alpha = ImageColor.getcolor(colour, "RGBA")  # type: ignore[misc]
    return tuple(round(255 + (part - 255) * alpha / 255) for part in rgb)
