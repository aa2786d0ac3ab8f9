"""The API's description as a page that runs no script and asks no other server for anything."""

import json
from typing import Any

from geo_embed.reporting.markup import table, to_text


def docs_page(described: dict[str, Any]) -> str:
    """HTML of an OpenAPI description.

    Args:
        described: as FastAPI makes it.
    """
    parts = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    schemas = described.get("components", {}).get("schemas", {})
    shapes = "".join(
        f'<section id="{to_text(name)}"><h3>{to_text(name)}</h3><p>{to_text(schema.get("description", ""))}</p>'
        f"{_fields(schema)}</section>"
        for name, schema in sorted(schemas.items())
    )
    info = described["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{to_text(info["title"])}: API</title><link rel="stylesheet" href="/docs.css"></head><body><main>'
        f"<h1>{to_text(info['title'])}: API</h1><p>{to_text(info.get('summary', ''))} "
        'For programs: <a href="/openapi.json">/openapi.json</a>. '
        'What goes wrong is answered by a status and <a href="#Error">error and hint</a>.</p>'
        f"{''.join(parts)}<h2>Answers</h2>{shapes}</main></body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    asked = [
        (
            p["name"],
            p["in"],
            "yes" if p.get("required") else "no",
            _kind(p["schema"]),
            p.get("description", ""),
        )
        for p in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {})
    response = operation["responses"].get("200", {}).get("content", {})
    lines = [
        f"<h2><code>{method.upper()} {to_text(path)}</code></h2><p>{to_text(operation.get('description', ''))}</p>"
    ]
    if asked:
        lines.append(table(("name", "in", "required", "is", ""), asked))
    lines += [
        f"<p>Takes {to_text(kind)}: {_link(content.get('schema', {}))}</p>" for kind, content in body.items()
    ]
    lines += [
        f"<p>Gives {to_text(kind)}: {_link(content.get('schema', {}))}</p>"
        for kind, content in response.items()
    ]
    return f"<section>{''.join(lines)}</section>"


def _fields(schema: dict[str, Any]) -> str:
    rows = [
        (name, _kind(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("name", "is", ""), rows) if rows else ""


def _link(schema: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        return f'<a href="#{to_text(name)}">{to_text(name)}</a>'
    return to_text(schema.get("description", "") or _kind(schema))


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_kind(alternative) for alternative in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([str(schema.get("type", "anything")), *bounds])
