"""Pictures of figures, as SVG written by hand: bars and stacked bars, readable on light and dark pages."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.faint { fill: #6e7781; font-size: 12px }
.head { font-weight: 600 }
.page { fill: #ffffff }
.line { stroke: #24292f; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9198a1 } .page { fill: #0d1117 } .line { stroke: #e6edf3 }
}
</style>"""
HUES = (
    *("#8c959f", "#0969da", "#54aeff", "#1b7c83", "#3fb8af", "#2da44e"),
    *("#bf8700", "#d4a72c", "#e16f24", "#fb8f44", "#8250df", "#c297ff"),
    *("#bf3989", "#ff80c8", "#cf222e", "#57606a"),
)
GOOD, BAD, PLAIN = "#2da44e", "#cf222e", "#0969da"
_ROW = 26


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title)}">'
    )
    page = f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>'
    shown = f'<text class="head" x="16" y="26">{escape(title)}</text>'
    return "\n".join([head, STYLE, page, shown, *parts, "</svg>"]) + "\n"


def bars(title: str, rows: Sequence[tuple[str, float, str, str]], *, mark: float | None = None) -> str:
    """Horizontal bars from zero.

    Args:
        rows: label, length, what to write beside the bar, colour.
        mark: where a line is drawn through all of them.
    """
    left, wide = 470.0, 350.0
    most = max([length for _, length, _, _ in rows] + [mark or 0.0]) or 1.0
    parts = []
    at = left + (mark or 0.0) / most * wide
    for number, (label, length, said, colour) in enumerate(rows):
        top = 46 + number * _ROW
        end = left + length / most * wide
        beside = at + 6 if end < at < end + 50 else end + 6
        parts += [
            f'<text x="{left - 8:.0f}" y="{top + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left:.0f}" y="{top}" width="{max(1.0, end - left):.1f}" height="18" rx="2" fill="{colour}"/>',
            f'<text class="faint" x="{beside:.1f}" y="{top + 14}">{escape(said)}</text>',
        ]
    height = 56 + len(rows) * _ROW
    if mark is not None:
        parts.append(f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="40" y2="{height - 12}"/>')
    return _svg(960, height, title, parts)


def stacked(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], *, unit: str) -> str:
    """One bar per row, divided as its mapping says, all at one scale; under them the parts with each row's figures."""
    left, wide = 130.0, 790.0
    most = max(sum(parts.values()) for _, parts in rows) or 1.0
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    hues = {name: HUES[number % len(HUES)] for number, name in enumerate(names)}
    parts = []
    for number, (label, row) in enumerate(rows):
        top, at = 46 + number * 44, left
        parts.append(f'<text x="{left - 8:.0f}" y="{top + 20}" text-anchor="end">{escape(label)}</text>')
        for name, value in row.items():
            width = value / most * wide
            shown = f"{name}: {value:.1f} {unit}"
            parts.append(
                f'<rect x="{at:.1f}" y="{top}" width="{width:.1f}" height="30" fill="{hues[name]}">'
                f"<title>{escape(shown)}</title></rect>"
            )
            at += width
    below = 46 + len(rows) * 44 + 26
    columns = [left + 340 + number * 180 for number in range(len(rows))]
    for column, (label, row) in zip(columns, rows, strict=True):
        total = f"{label}: {sum(row.values()):.0f} {unit}"
        parts.append(f'<text x="{column:.0f}" y="{below - 6}" text-anchor="end" class="head">{escape(total)}</text>')
    for number, name in enumerate(names):
        top = below + 4 + number * 20
        parts.append(f'<rect x="16" y="{top + 1}" width="12" height="12" fill="{hues[name]}"/>')
        parts.append(f'<text x="36" y="{top + 12}">{escape(name)}</text>')
        for column, (_, row) in zip(columns, rows, strict=True):
            value = f"{row.get(name, 0.0):.1f}"
            parts.append(f'<text class="faint" x="{column:.0f}" y="{top + 12}" text-anchor="end">{value}</text>')
    return _svg(960, below + len(names) * 20 + 20, title, parts)
