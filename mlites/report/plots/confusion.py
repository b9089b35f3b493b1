"""Confusion matrices of any number of classes."""

from collections.abc import Sequence

from markupsafe import Markup

from mlites.report.plots.svg import element, shorten, shown, svg, text

COUNTED_CLASSES = 12  # with more, the cells are too small for numbers
NAMED_CLASSES = 24
MATRIX_WIDTH = 320.0


def confusion_plot(title: str, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Rows are the true classes, columns the predicted; shade is the share of the row.

    With many classes names and numbers would be too small: axes count instead, and the page lists the worst pairs.
    """
    size, many = len(counts), len(counts) > NAMED_CLASSES
    letters = 2 if many else min(max(len(name) for name in classes), 13)
    margin = 20 + (22 if many else 5.6 * letters + 6)
    cell = (MATRIX_WIDTH - margin - 2) / size
    font = 9.5 if many else min(10.0, cell * 0.95)
    top = margin if not many and letters > 3 else 36.0
    height = top + cell * size + 2
    parts = [element("rect", x=margin, y=top, width=cell * size, height=cell * size, class_="matrix")]
    parts.append(text(margin + cell * size / 2, 11, "predicted", "panel", "middle"))
    middle = top + cell * size / 2
    parts.append(text(11, middle, "true", "panel", "middle", transform=f"rotate(-90 11 {shown(middle)})"))
    for row, line_counts in enumerate(counts):
        total = sum(line_counts)
        for column, count in enumerate(line_counts):
            if count:
                parts.append(_cell(row, column, count, total, (margin, top, cell), size, classes))
    every = 1 if not many else 5 if size <= 50 else 10
    for index in range(0, size, every):
        centre = (index + 0.5) * cell
        name = str(index) if many else shorten(classes[index], letters)
        parts.append(text(margin - 4, top + centre + 3.3, name, "class", "end", font_size=font))
        if letters > 3 and not many:
            across = margin + centre + 3
            spin = f"rotate(-90 {shown(across)} {shown(top - 5)})"
            parts.append(text(across, top - 5, name, "class", transform=spin, font_size=font))
        else:
            parts.append(text(margin + centre, top - 5, name, "class", "middle", font_size=font))
    return svg(MATRIX_WIDTH, height, title, *parts, class_="plot square")


def _cell(
    row: int, column: int, count: int, total: int, place: tuple[float, float, float], size: int, classes: Sequence[str]
) -> Markup:
    left, top, cell = place
    share, right = count / total, row == column
    x, y = left + column * cell, top + row * cell
    edge = max(cell - min(1.6, cell * 0.16), 3.4)  # of a hundred classes, a lone mistake must still be seen
    gap = (cell - edge) / 2
    shade = f"{0.12 + 0.78 * share if right else 0.3 + 0.6 * min(share * 3, 1.0):.2f}"  # mistakes are rare
    kind = "right" if right else "wrong"
    drawn = element("rect", x=x + gap, y=y + gap, width=edge, height=edge, fill_opacity=shade, class_=kind)
    hint = element("title", f"true {classes[row]}, predicted {classes[column]}: {count} ({share:.1%})")
    if size > COUNTED_CLASSES:
        return element("g", hint, drawn)
    words = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
    font = min(cell * 0.42, (cell - 3) / (0.6 * len(words)), 12.0)
    kind = "count strong" if float(shade) > 0.55 else "count"
    number = text(x + cell / 2, y + cell / 2 + font * 0.36, words, kind, "middle", font_size=font)
    return element("g", hint, drawn, number)
