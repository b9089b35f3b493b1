"""Inline SVG whose colours and fonts come from the page's style sheet, so that it follows light and dark."""

from markupsafe import Markup

TIMES = "\N{MULTIPLICATION SIGN}"


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; text and attribute values are escaped, ``font_size`` becomes ``font-size``."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    inside = Markup().join(Markup(' {}="{}"').format(key, shown(value)) for key, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, inside, Markup().join(children))


def shown(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def svg(width: float, height: float, label: str, *children: str, class_: str = "plot") -> Markup:
    """A picture that scales with its box and reads as one image to a screen reader."""
    box = f"0 0 {shown(float(width))} {shown(float(height))}"
    open_tag = Markup('<svg class="{}" viewBox="{}" role="img" aria-label="{}">').format(class_, box, label)
    return open_tag + Markup().join(children) + Markup("</svg>")


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None, **more: object) -> Markup:
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def shorten(content: str, letters: int) -> str:
    """At most so many letters, the last an ellipsis where something was cut."""
    return content if len(content) <= letters else content[: max(letters - 1, 1)].rstrip() + "…"
