"""The page and its parts, from the package's folder, and a plain list of what the server answers."""

from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from starlette.responses import HTMLResponse, Response

from diffusiongemma.server.errors import ApiError

__all__ = ["Page", "docs"]

# What a machine's own table says of .js is not always what a browser takes for a script.
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


class Page:
    """Files of ``server/page``, read once; a name that is not among them is not looked for anywhere."""

    def __init__(self) -> None:
        folder = files("diffusiongemma.server") / "page"
        self._files = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()} if folder.is_dir() else {}

    def file(self, name: str) -> Response:
        """One of them.

        Raises:
            ApiError: there is no such file.
        """
        if name not in self._files:
            raise ApiError(404, "there is no such part of the page", None, "not_found")
        kind = _KINDS.get(PurePath(name).suffix, "application/octet-stream")
        return Response(self._files[name], media_type=kind, headers={"Cache-Control": "no-cache"})


def docs(description: dict[str, Any]) -> Response:
    """The OpenAPI description as a page without scripts, so that it works offline."""
    parts = [f"<!doctype html><meta charset=utf-8><title>API</title><h1>{escape(description['info']['title'])}</h1>"]
    parts.append('<p>As JSON: <a href="/openapi.json">/openapi.json</a></p>')
    schemas = description.get("components", {}).get("schemas", {})
    for path, methods in description["paths"].items():
        for method, what in methods.items():
            said = what.get("description") or what.get("summary", "")
            parts.append(f"<h2>{escape(method.upper())} {escape(path)}</h2><p>{escape(said)}</p>")
            content = what.get("requestBody", {}).get("content", {})
            for body in content.values():
                name = body["schema"].get("$ref", "").rsplit("/", 1)[-1]
                parts.append(f'<p>Body: <a href="#{escape(name)}">{escape(name)}</a></p>')
    for name, schema in schemas.items():
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p><ul>')
        needed = schema.get("required", ())
        parts += [f"<li>{escape(field)}{' (required)' if field in needed else ''}</li>" for field in schema.get("properties", {})]
        parts.append("</ul>")
    return HTMLResponse("\n".join(parts))
