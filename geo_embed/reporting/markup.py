"""Pieces of HTML for pages that run no script; every text of the data goes through `to_text`."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from geo_embed.console import harmless

if TYPE_CHECKING:
    from PIL.Image import Image

# Of a picture on a page: its longer side in pixels, and JPEG's quality.
PICTURE_SIDE, _QUALITY = 168, 74


def missing(title: str, why: str) -> str:
    """A panel that says why something isn't shown."""
    return f'<div class="missing"><h3>{to_text(title)}</h3><p>{to_text(why)}</p></div>'


def figure(title: str, caption: str, body: str) -> str:
    """A panel with a title and a line below it."""
    return (
        f"<figure><figcaption><h3>{to_text(title)}</h3><p>{to_text(caption)}</p></figcaption>{body}</figure>"
    )


def tiles_of(tiles: Iterable[tuple[str, str]]) -> str:
    """The numbers that one looks for first: what each is called, and its value."""
    cells = "".join(
        f'<div class="tile"><dt>{to_text(name)}</dt><dd>{to_text(value)}</dd></div>' for name, value in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int | None = None, caption: str = ""
) -> str:
    """A table that scrolls by itself; columns from `numbers` on stand to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if numbers is not None and k >= numbers else ''}{' scope=col' if tag == 'th' else ''}>{to_text(value)}</{tag}>"
            for k, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    named = f"<caption>{to_text(caption)}</caption>" if caption else ""
    return f'<div class="scroll" tabindex="0"><table>{named}<thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def to_text(value: object) -> str:
    """A text for HTML, in one line and without anything that is unseen or obeyed."""
    return html.escape(harmless(str(value)))


def to_url(image: "Image") -> str:
    """A picture as a data URL, written anew: no EXIF, which may hold places and names, gets in."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def to_km(km: float) -> str:
    """A distance for people: metres below a kilometre."""
    return f"{1000 * km:,.0f} m" if km < 1 else f"{km:,.1f} km" if km < 10 else f"{km:,.0f} km"


def to_bytes(count: int) -> str:
    """A size for people."""
    from rich.filesize import decimal

    return decimal(count)
