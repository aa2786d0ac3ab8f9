"""`geo explore`: a page over a run, its cache and its pictures, served from this machine."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import urlencode

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.explorer.scene import Scene
from geo_embed.explorer.serving import Explorer, Page, bind, serve_aside, url_of
from geo_embed.runs.run import Run, load_run

_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def explore(
    config: Config,
    run: Run | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    compare: Run | str | None = None,
    split: str | None = None,
) -> Explorer:
    """Serve a page over a run, and a JSON API, from a thread of this process, as a notebook does.

    Args:
        config: paths and device.
        run: itself, its name or its directory; None is the newest.
        host: where to listen. Beyond this machine a token is asked for.
        port: default: a free one.
        compare: another run, whose answers stand beside.
        split: `val` or `test`, shown first; default: the held-out samples, or where there are none those of test.

    Returns:
        Its address, `url`, where it answers already; it ends with `close()`, a `with` block, or the process.

    Raises:
        GeoError: a package is missing; no such run, or a damaged one; it has no predictions of the split; the port is taken.
    """
    with listening(config, run, host=host, port=port, compare=compare, split=split) as page:
        return serve_aside(page)


@contextmanager
def listening(
    config: Config,
    name: Run | str | None,
    *,
    host: str,
    port: int | None,
    compare: Run | str | None,
    split: str | None,
) -> Iterator[Page]:
    """The page of `explore`, ready to be served: here until an interrupt (`serve`), or aside. Where that fails, its socket is closed."""
    check_installed()
    from geo_embed.explorer.api import build_app
    from geo_embed.explorer.guard import TOKEN, Guard, is_loopback, own_names

    # A port that is taken is to be known before anything is read.
    socket = bind(host, port)
    try:
        scene, first = open_scene(config, name, compare=compare, split=split)
        address, own_port = socket.getsockname()[:2]
        alone = is_loopback(address)
        token = None if alone else secrets.token_urlsafe(24)
        app = Guard(build_app(scene, first), hosts=own_names(host, alone=alone), token=token, port=own_port)
        yield Page(app, socket, url_of(socket) + (f"?{urlencode({TOKEN: token})}" if token else ""))
    except BaseException:
        socket.close()
        raise


def open_scene(
    config: Config, name: Run | str | None, *, compare: Run | str | None = None, split: str | None = None
) -> tuple[Scene, str]:
    """What the page is to show, and the split that it shows first, read and ready. As `explore`."""
    run = name if isinstance(name, Run) else load_run(config.paths.runs_dir, name)
    if compare is None or isinstance(compare, Run):
        compared = compare
    else:
        compared = load_run(config.paths.runs_dir, compare)
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
    if compared is not None and scene.compared_on(first) is None:
        raise GeoError(
            f"the run {compared.name} has no predictions of the {first} split to compare",
            where=compared.path,
            hint=f"geo predict {compared.name} --split test"
            if first == "test"
            else "compare one that held out samples",
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
