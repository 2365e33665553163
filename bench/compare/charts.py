"""Bars as SVG. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 170, 90, 24, 54
OURS, THEIRS, FLOOR, INK, FAINT = "#0b6e4f", "#8a99a8", "#d9c58b", "#222222", "#c8c8c8"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    """The ends of the thin line; equal to `value` where there is none."""
    kind: str = "theirs"
    """ours, theirs or floor."""


def bars(title: str, unit: str, rows: Sequence[Bar], mark: float | None = None) -> str:
    """One row for each; `mark` is a line across all. A bar too long for the rest is cut, and says so."""
    longest = _scale(rows)
    across = WIDTH - LEFT - RIGHT
    height = TOP + ROW * len(rows) + 14

    def x(value: float) -> float:
        return LEFT + min(value / longest, 1.0) * across

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {_size(height)} font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="12" y="41" fill="{INK}">{escape(unit)}</text>',
    ]
    for number, row in enumerate(rows):
        parts += _row(row, TOP + number * ROW, x, row.value > longest)
    if mark is not None:
        at = x(mark)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{height - 12}" stroke="{INK}" '
            'stroke-dasharray="3 3"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


# Private


def _scale(rows: Sequence[Bar]) -> float:
    """The value at the right end: the largest, or less where one dwarfs the others."""
    values = sorted(row.value for row in rows)
    usual = values[len(values) // 2] * 4
    return max(max((value for value in values if value <= usual), default=1.0) * 1.02, 1e-9)


def _size(height: int) -> str:
    return f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'


def _row(row: Bar, y: int, x: Callable[[float], float], cut: bool) -> list[str]:
    colour = {"ours": OURS, "floor": FLOOR}.get(row.kind, THEIRS)
    weight = "600" if row.kind == "ours" else "400"
    style = f'font-weight="{weight}" fill="{INK}"'
    line, text = y + (ROW - 6) / 2, y + ROW / 2 + 3
    long = f'width="{max(1.0, x(row.value) - LEFT):.1f}" height="{ROW - 6}"'
    parts = [
        f'<text x="{LEFT - 8}" y="{text:.1f}" text-anchor="end" {style}>{escape(row.label)}</text>',
        f'<rect x="{LEFT}" y="{y}" {long} fill="{colour}"/>',
    ]
    end = x(row.value)
    if row.high > row.low and not cut:
        ends = f'x1="{x(row.low):.1f}" x2="{x(row.high):.1f}"'
        parts.append(f'<line {ends} y1="{line:.1f}" y2="{line:.1f}" stroke="{INK}"/>')
        end = max(end, x(row.high))
    shown = f"{row.value:.2f}" if row.value < 100 else f"{row.value:,.0f}"
    parts.append(f'<text x="{end + 6:.1f}" y="{text:.1f}" {style}>{shown}{" (cut)" if cut else ""}</text>')
    return parts
