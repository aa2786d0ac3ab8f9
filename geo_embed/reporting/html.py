"""One HTML file out of plain values and the modules in page/: it asks no server for anything, and runs no text of the data."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from geo_embed.reporting.markup import to_text

# In the order in which they need each other.
MODULES = (
    *("format", "elements", "chart", "score", "training", "map", "confusion", "reliability", "errors"),
    *("distribution", "views", "cases", "next", "report"),
)
STYLES = ("theme", "report", "print")
VENDOR = "plot.min.js"

_IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
# Closing tags, comments and lines' ends that HTML or old JavaScript would see in JSON.
_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def to_html(title: str, data: Any) -> str:
    """The page that shows `data`, which goes into it as JSON.

    The Content-Security-Policy names the scripts and the style by their hashes and allows nothing else but pictures inside the file.
    """
    library, script, look = _read(f"vendor/{VENDOR}"), _script(), style(*STYLES)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {hash_source(library)} {hash_source(script)}",
            f"style-src {hash_source(look)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return Template(_read("report.html")).substitute(
        title=html.escape(title),
        policy=html.escape(policy),
        style=look,
        library=library,
        script=script,
        data=to_json(data),
        licences=html.escape(_read("vendor/LICENSES.txt")),
    )


def to_plain_html(
    title: str, top: str, sections: Sequence[tuple[str, str, str]], footer: str, *looks: str
) -> str:
    """A page that runs no script, with the same policy.

    Args:
        title: of the page, as text.
        top: HTML of its header.
        sections: of each what the navigation calls it, its title (both as text), and its HTML.
        footer: HTML of the last line.
        looks: style sheets beside those that every page has.
    """
    look = style(*STYLES, *looks)
    policy = f"default-src 'none'; style-src {hash_source(look)}; img-src data:; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{to_text(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">',
            f"<title>{to_text(title)}</title>\n<style>{look}</style>\n</head>\n<body>",
            '<a class="skip" href="#sections">To the findings</a>',
            f"<header>{top}</header>",
            '<nav aria-label="Sections"><ul>',
            *(f'<li><a href="#{key.lower()}">{to_text(key)}</a></li>' for key, _, _ in sections),
            '</ul></nav>\n<main id="sections" tabindex="-1">',
            *(
                f'<section id="{key.lower()}"><h2>{to_text(heading)}</h2>\n{body}</section>'
                for key, heading, body in sections
            ),
            f"</main>\n<footer><p>{footer}</p></footer>\n</body>\n</html>\n",
        ]
    )


def to_json(data: Any) -> str:
    """JSON that can stand in a script element, whatever its texts hold: `</script>` in a name ends nothing.

    >>> to_json(["</script>"])
    '["\\\\u003c/script\\\\u003e"]'
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _script() -> str:
    """The page's modules as one script: imports and exports are of use to editors, and here all are in one scope."""
    parts = [_EXPORT.sub("", _IMPORT.sub("", _read(f"{name}.js"))) for name in MODULES]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"


def style(*names: str) -> str:
    """The style sheets of these names as one: `theme`, `report` and `print` are the look of every page."""
    return "\n".join(_read(f"{name}.css") for name in names)


def hash_source(text: str) -> str:
    """A script or style as a Content-Security-Policy names it."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _read(name: str) -> str:
    return (resources.files("geo_embed.reporting") / "page" / name).read_text(encoding="utf-8")
