"""Draws the arrows between rooms from a ```house block of a page, in layers."""

import re

_BLOCK = re.compile(r"^```house\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_WIDTH, _HEIGHT, _GAP, _RISE = 118, 34, 18, 92


def arrows(text: str) -> dict[str, list[str]]:
    """Return the rooms that each room imports, from lines `room -> room, room`."""
    graph: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        room, _, imported = line.partition("->")
        graph[room.strip()] = [name.strip() for name in imported.split(",") if name.strip()]
    return graph


def block(markdown: str) -> str:
    """Return the text of the page's ```house block."""
    match = _BLOCK.search(markdown)
    if match is None:
        raise ValueError("the page has no ```house block; write lines `room -> room, room` in one")
    return match[1]


def draw(markdown: str) -> str:
    """Return the page with a drawing above the text of every ```house block; the text serves screen readers."""

    def both(match: re.Match[str]) -> str:
        return f"{_svg(arrows(match[1]))}\n\n```text\n{match[1]}```"

    return _BLOCK.sub(both, markdown)


def _svg(graph: dict[str, list[str]]) -> str:
    depth: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in depth:
            depth[room] = 1 + max((level(other) for other in graph.get(room, [])), default=-1)
        return depth[room]

    rooms = list(dict.fromkeys([*graph, *(other for known in graph.values() for other in known)]))
    layers = [[room for room in rooms if level(room) == i] for i in range(max(map(level, rooms)) + 1)]
    widest = max(map(len, layers)) * (_WIDTH + _GAP) - _GAP
    place = {}
    for i, layer in enumerate(reversed(layers)):
        start = (widest - len(layer) * (_WIDTH + _GAP) + _GAP) / 2
        place |= {room: (start + j * (_WIDTH + _GAP), i * _RISE + 4) for j, room in enumerate(layer)}
    parts = []
    for room, known in graph.items():
        for other in known:
            (x1, y1), (x2, y2) = place[room], place[other]
            a, b, top, bottom = x1 + _WIDTH / 2, x2 + _WIDTH / 2, y1 + _HEIGHT, y2 - 3
            bend = (bottom - top) / 2
            parts.append(
                f'<path d="M{a:.0f} {top:.0f} C{a:.0f} {top + bend:.0f} {b:.0f} {bottom - bend:.0f} {b:.0f} '
                f'{bottom:.0f}" fill="none" stroke="currentColor" stroke-opacity="0.45" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in place.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
            'fill="var(--md-default-bg-color, white)" stroke="currentColor"/>'
            f'<text x="{x + _WIDTH / 2:.0f}" y="{y + 22:.0f}" text-anchor="middle" font-size="15" '
            f'fill="currentColor">{room}</text>'
        )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    height = (len(layers) - 1) * _RISE + _HEIGHT + 8
    return (
        f'<div class="house" tabindex="0"><svg viewBox="-2 0 {widest + 4} {height}" role="img" '
        f'aria-label="The rooms of the house and who imports whom; the text below says the same" '
        f'style="min-width:{widest * 0.6:.0f}px;width:100%">{tip}{"".join(parts)}</svg></div>'
    )
