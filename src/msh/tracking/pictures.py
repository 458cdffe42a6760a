"""Pictures for trackers, of bounded size: heat maps, stacked bars, owner maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from msh.errors import one_of
from msh.runs.colours import colours_of
from msh.runs.groups import in_groups
from msh.runs.ownership import owner_matrix, spaced
from msh.subnetworks import Capacity, NetworkState

Pictures = Mapping[str, Mapping[str, Image.Image]]
"""Name to {caption: picture}; one without a caption has ""."""
BACKGROUND, INK, FREE_COLOUR = "#ffffff", "#222222", "#dddddd"
PALE, DARK = (250, 235, 200), (31, 110, 140)
TEXT, PAD = 13, 8
WIDE, SIDE = 1200, 256
"""Pixels, at most, for the cells of a heat map, and for a side of an owner map, so that those of a row look alike."""
MOST_BARS, MOST_NAMES = 40, 24


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    shades: Sequence[Sequence[float]],
) -> Image.Image:
    """A matrix in colours, with its numbers and names where there is room.

    Args:
        rows: their names.
        columns: their names.
        values: of each row, in the columns' order; None stays empty.
        shades: the same, in [0, 1]: how dark.
    """
    cell = max(4, min(64, WIDE // max(len(rows), len(columns), 1)))
    named = cell >= TEXT + 3
    left = _widest(rows) + 2 * PAD if named else PAD
    top = _widest(columns) + 2 * PAD if named else PAD
    picture = Image.new("RGB", (left + cell * len(columns) + PAD, top + cell * len(rows) + PAD), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None:
                at, share = (left + j * cell, top + i * cell), shades[i][j]
                shade = tuple(round(a + (b - a) * share) for a, b in zip(PALE, DARK, strict=True))
                draw.rectangle((*at, at[0] + cell - 1, at[1] + cell - 1), fill=shade)
                if cell >= 48:
                    middle = (at[0] + cell // 2, at[1] + cell // 2)
                    draw.text(middle, f"{value:.3g}", BACKGROUND if share > 0.5 else INK, _font(), anchor="mm")
    if named:
        for i, name in enumerate(rows):
            draw.text((left - PAD, top + i * cell + cell // 2), name, INK, _font(), anchor="rm")
        for j, name in enumerate(columns):
            _write_upwards(picture, (left + j * cell + cell // 2, top - PAD), name)
    return picture


def stacked_bars(layers: Sequence[Capacity]) -> Image.Image:
    """A bar for each layer, divided among its owners by their share of its weights.

    Of more than 40 layers, neighbours share a bar; of more than 24 tasks, not all are named.

    Args:
        layers: what `NetworkState.capacity` and `.total` give; all have the same tasks.
    """
    groups = in_groups([layer.name for layer in layers], MOST_BARS)
    bars = [Capacity.together(group.name, [layers[place] for place in group.places]) for group in groups]
    colours = colours_of(list(layers[0].owned)) if layers else {}
    left, length, thick = _widest([bar.name for bar in bars]) + 2 * PAD, 560, TEXT + 11
    legend = [*list(colours.items())[:MOST_NAMES], ("free", FREE_COLOUR)]
    if len(colours) > MOST_NAMES:
        legend.insert(-1, (f"and {len(colours) - MOST_NAMES} more tasks", BACKGROUND))
    right = left + length + 2 * PAD
    height = max(len(bars) * thick, len(legend) * (TEXT + 5)) + 2 * PAD
    picture = Image.new("RGB", (right + _widest([name for name, _ in legend]) + 4 * PAD, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for place, bar in enumerate(bars):
        at, y = float(left), PAD + place * thick
        draw.text((left - PAD, y + thick // 2), bar.name, INK, _font(), anchor="rm")
        for name, count in [*bar.owned.items(), ("free", bar.free)]:
            end = at + length * count / max(1, bar.size)
            if round(end) > round(at):
                draw.rectangle((round(at), y + 2, round(end) - 1, y + thick - 3), fill=colours.get(name, FREE_COLOUR))
            at = end
    for place, (name, colour) in enumerate(legend):
        y = PAD + place * (TEXT + 5)
        draw.rectangle((right, y + 2, right + TEXT - 2, y + TEXT), fill=colour)
        draw.text((right + TEXT + 4, y), name, INK, _font())
    return picture


def owner_map(ownership: NetworkState, layer: str) -> Image.Image:
    """A layer's owner map: a dot for each weight in its owner's colour; rows are output units, columns their inputs.

    Of more than 256 rows or columns, as many are shown, evenly spaced.

    Args:
        ownership: the network.
        layer: tensor name.
    Raises:
        KeyError: there is no such layer.
    """
    shown = owner_matrix(ownership, layer)
    ids = shown[spaced(shown.shape[0], SIDE)][:, spaced(shown.shape[1], SIDE)].numpy()
    colours = colours_of([*ownership.tasks])
    palette = np.full((int(ids.max(initial=0)) + 1, 3), _rgb(FREE_COLOUR), dtype=np.uint8)
    for task, entry in ownership.tasks.items():
        if entry.owner < len(palette):
            palette[entry.owner] = _rgb(colours[task])
    picture = Image.fromarray(palette[ids])
    times = max(1, SIDE // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def same_size(pictures: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
    """The pictures, grown to the size of the largest without changing their shapes."""
    size = max(p.width for p in pictures.values()), max(p.height for p in pictures.values())
    how: dict[str, Any] = {"method": Image.Resampling.NEAREST, "color": BACKGROUND, "centering": (0, 0)}
    return {name: p if p.size == size else ImageOps.pad(p, size, **how) for name, p in pictures.items()}


def chosen_layers(names: Sequence[str], wanted: int | str | Sequence[str]) -> list[str]:
    """The layers of which owner maps are made.

    Args:
        names: of all layers.
        wanted: names, or how many: evenly spaced, from the first to the last.
    Raises:
        ValueError: one is not there, or the number is negative.
    """
    if not isinstance(wanted, int):
        chosen = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
        for name in chosen:
            one_of("owner_maps", name, names)
        return chosen
    if wanted < 0:
        raise ValueError(f"owner_maps = {wanted}: names of layers, or how many of them, at least 0")
    count = min(wanted, len(names))
    return [names[round(place * (len(names) - 1) / max(1, count - 1))] for place in range(count)]


def _write_upwards(picture: Image.Image, foot: tuple[int, int], text: str) -> None:
    line = Image.new("RGB", (_widest([text]) + 2, TEXT + 3), BACKGROUND)
    ImageDraw.Draw(line).text((0, 0), text, INK, _font())
    turned = line.transpose(Image.Transpose.ROTATE_90)
    picture.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))


def _widest(names: Sequence[str]) -> int:
    return max((round(_font().getlength(name)) for name in names), default=0)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
