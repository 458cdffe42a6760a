"""Colours of tasks."""

import pytest

from msh.runs.colours import FEW, MANY, SCORES, colours_of


def test_few_tasks_have_distinct_colours():
    assert list(colours_of("abc").values()) == list(FEW[:3])


def test_many_tasks_lie_on_a_ramp_from_the_first_to_the_last():
    names = [f"t{n}" for n in range(200)]
    colours = list(colours_of(names).values())
    assert (colours[0], colours[-1]) == (MANY[0], MANY[-1])
    assert len(set(colours)) == 200


@pytest.mark.parametrize("colour", [*FEW, *colours_of(range(200)).values(), *SCORES])
@pytest.mark.parametrize("page", ["#ffffff", "#12151b"])
def test_colours_stand_out_on_light_and_dark_pages(colour, page):
    light, dark = sorted((_luminance(colour), _luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 2


def _luminance(colour):
    """Relative luminance, as in WCAG 2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
