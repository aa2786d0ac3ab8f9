"""`geo explore`: a page over a run, its cache and its pictures, served from this machine."""

import secrets
from collections.abc import Callable
from importlib.util import find_spec
from urllib.parse import urlencode

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.explorer.scene import Scene
from geo_embed.runs.run import load_run

_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def explore(
    config: Config,
    name: str | None,
    announce: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    compare: str | None = None,
    split: str | None = None,
) -> None:
    """Serve a page over a run, and a JSON API, until an interrupt.

    Args:
        config: paths and device.
        name: a run, by name or directory; None is the newest.
        announce: told the address once it answers; where others than this machine can reach it, with the token that it asks for.
        host: where to listen. Beyond this machine a token is asked for.
        port: default: a free one.
        compare: another run, whose answers stand beside.
        split: `val` or `test`, shown first; default: the held-out samples, or where there are none those of test.

    Raises:
        GeoError: a package is missing; no such run, or a damaged one; it has no predictions of the split; the port is taken.
    """
    check_installed()
    from geo_embed.explorer.api import build_app
    from geo_embed.explorer.guard import TOKEN, Guard, is_loopback, own_names
    from geo_embed.explorer.serving import bind, serve, url_of

    # A port that is taken is to be known before anything is read.
    with bind(host, port) as listening:
        scene, first = open_scene(config, name, compare=compare, split=split)
        own_port = listening.getsockname()[1]
        token = None if is_loopback(host) else secrets.token_urlsafe(24)
        app = Guard(build_app(scene, first), hosts=own_names(host), token=token, port=own_port)
        url = url_of(listening) + (f"?{urlencode({TOKEN: token})}" if token else "")
        serve(app, listening, lambda: announce(url))


def open_scene(
    config: Config, name: str | None, *, compare: str | None = None, split: str | None = None
) -> tuple[Scene, str]:
    """What the page is to show, and the split that it shows first, read and ready. As `explore`."""
    run = load_run(config.paths.runs_dir, name)
    compared = None if compare is None else load_run(config.paths.runs_dir, compare)
    scene = Scene(config, run, compared)
    if not scene.splits:
        raise GeoError(
            "the run has no predictions to show: it held out no samples, or their table is gone",
            where=run.path,
            hint=f"geo predict {run.name} --split test, or train it again",
        )
    if split is not None and split not in scene.splits:
        hint = f"geo predict {run.name} --split test" if split == "test" else "train the run again"
        raise GeoError(f"the run has no predictions of the {split} split", where=run.path, hint=hint)
    first = split or scene.splits[0]
    if compared is not None and not compared.predictions_path(first).is_file():
        raise GeoError(
            f"the run {compared.name} has no predictions of the {first} split to compare", where=compared.path
        )
    # The page's first paint waits for these.
    _ = scene.shown(first), scene.outlines
    return scene, first


def check_installed() -> None:
    """Raise GeoError where a package of the extra is missing."""
    absent = [module for module in _NEEDED if find_spec(module) is None]
    if absent:
        raise GeoError(
            f"geo explore needs packages that aren't installed: {', '.join(absent)}",
            hint="pip install 'geo-embed[explore]'",
        )
