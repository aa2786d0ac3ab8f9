"""The JSON API and the page, as an ASGI application."""

import asyncio
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from geo_embed import __version__
from geo_embed.console import harmless
from geo_embed.errors import GeoError, PlainError
from geo_embed.explorer import answers
from geo_embed.explorer.docs_page import docs_page
from geo_embed.explorer.game import MOST_ROUNDS, deal, judge
from geo_embed.explorer.guard import Refusal, refusal_of
from geo_embed.explorer.memory import RunInMemory
from geo_embed.explorer.scene import Scene, distribution
from geo_embed.explorer.thumbnails import LEAST_SIDE, MOST_SIDE, Thumbnails
from geo_embed.explorer.uploads import decode_pictures, place_of, read_form
from geo_embed.runs.run import is_run

Result = TypeVar("Result")
Split = Literal["val", "test"]
# What the page shares with the reports: colours and typeface, elements, how numbers are written.
_SHARED = ("theme.css", "elements.js", "format.js")
# Threads that read and draw, and pictures that are decoded and answered: the rest wait their turn, one loop serves them all.
_THREADS, _ANSWERING, _MOST_WAITING = 4, 1, 16
# Places whose pictures are in memory at once, since each may be large; and how long all of one's may take to come.
_SENDING, UPLOAD_SECONDS = 4, 120.0
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Error} for status in (400, 403, 404, 408, 413, 415, 422, 503)
}
# What is said of a request that no function of ours is asked by.
_MISASKED = {
    400: ("what was sent can't be read", "/docs has what is asked for"),
    404: ("there is nothing here", "/docs has what there is"),
    405: ("this can't be asked for in this way", "/docs has how"),
}
ARROW = "application/vnd.apache.arrow.stream"


def build_app(scene: Scene, split: str) -> FastAPI:
    """The application; who may ask is the guard's business.

    Args:
        scene: what it shows.
        split: the one that is shown where none is named.
    """
    app = FastAPI(
        title="geo explore",
        version=__version__,
        summary=f"Run {scene.run.name}: its samples, its answers, and answers to your own pictures.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    thumbnails, files = Thumbnails(scene), _page_files()
    reading, answering = anyio.CapacityLimiter(_THREADS), anyio.CapacityLimiter(_ANSWERING)
    sending = anyio.CapacityLimiter(_SENDING)

    async def read(work: Callable[[], Result]) -> Result:
        """In a thread; one that nobody waits for any more is left to itself."""
        try:
            return await run_sync(work, abandon_on_cancel=True, limiter=reading)
        except PlainError as error:
            raise lacks(error, 404) from error

    def lacks(error: PlainError, status: int) -> Refusal:
        """What is said of what is missing: of a run that was removed meanwhile that alone, not which of its files is sought."""
        if is_run(scene.run.path):
            return refusal_of(error, status)
        return Refusal(
            status,
            f"the run {scene.run.name} is no longer there",
            "end geo explore, and start it with another run",
        )

    def chosen(asked: str | None) -> str:
        name = split if asked is None else asked
        if name not in scene.splits:
            raise Refusal(
                404,
                f"the run has no predictions of the {name} split",
                f"geo predict {scene.run.name} --split test" if name == "test" else "",
            )
        return name

    # ---------------------------------------------------------------- the page

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(files, "index.html")

    @app.get("/assets/{name:path}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return _file(files, name)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        style = resources.files("geo_embed.explorer").joinpath("docs.css").read_bytes()
        return Response(style, media_type=_TYPES["css"])

    # ---------------------------------------------------------------- the run

    @app.get("/api/run", response_model=answers.About)
    async def about(split: Split | None = None) -> Any:
        """The run at a glance: classes, views, metrics, and what can be done with it."""
        name = chosen(split)
        return await read(lambda: scene.about(name))

    @app.get(
        "/api/samples.arrow",
        response_class=Response,
        responses={200: {"content": {ARROW: {}}, "description": "An Arrow IPC stream, uncompressed."}},
    )
    async def samples(
        split: Split | None = None,
        compare: Annotated[
            str | None, Query(max_length=4096, description="the run that --compare named")
        ] = None,
    ) -> Response:
        """Every sample of a split, in the order of the run's prediction table.

        `sample_id` utf8; `latitude`, `longitude`, `predicted_latitude`, `predicted_longitude`, `km`, `score`, `confidence`, `x`, `y`
        float32; `state`, `predicted_state`, `rank` int16 (1 to 5, 0 where the true state isn't among the first five). What needs the truth is
        left out where it isn't known. With `compare` also `agrees` bool, whether the other run's first state is the same, and
        `compare_km` float32, how far off the other run's point is; null where it has no answer.
        """
        name = chosen(split)
        if compare and (scene.compared is None or compare != scene.compared.name):
            raise Refusal(404, "no such run stands beside this one", "geo explore RUN --compare OTHER")
        table = await read(lambda: scene.table(name, bool(compare)))
        return Response(table, media_type=ARROW)

    @app.get("/api/samples/{split}/{sample_id:path}", response_model=answers.Sample)
    async def sample(split: Split, sample_id: Annotated[str, Path(max_length=4096)]) -> Any:
        """A sample: its views and what each weighs, truth, answer, distribution, and neighbours in the learnt space."""
        name = chosen(split)
        record = await read(lambda: scene.sample(name, sample_id))
        if record is None:
            raise Refusal(404, f"the {name} split has no such sample", "/api/samples.arrow has all ids")
        return record

    @app.get("/api/outlines", response_model=answers.Outlines)
    async def outlines() -> Any:
        """Outlines of the classes, the land around them, and the map projection that suits them."""
        return Response(await read(lambda: scene.outlines), media_type=_TYPES["json"])

    @app.get(
        "/pictures/{split}/{sample_id:path}/{view}",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}, "description": "A small JPEG."},
            304: {"description": "As it was."},
        },
    )
    async def picture(
        request: Request,
        split: Literal["val", "train", "test"],
        sample_id: Annotated[str, Path(max_length=4096)],
        view: str,
        side: Annotated[
            int, Query(ge=LEAST_SIDE, le=MOST_SIDE, description="the longer side's most pixels")
        ] = 256,
    ) -> Response:
        """A picture of the manifest, made small and written anew, without EXIF."""
        tag = request.headers.get("if-none-match", "")
        # Ids and names of views may hold a slash each.
        whole = f"{sample_id}/{view}"
        names = [name for name in scene.run.config.model.view_names if whole.endswith(f"/{name}")]
        thumbnail = None
        for name in sorted(names, key=len, reverse=True):
            if thumbnail is None:
                own_id = whole.removesuffix(f"/{name}")
                thumbnail = await read(partial(thumbnails.of, split, own_id, name, side, tag))
        if thumbnail is None:
            raise Refusal(404, "the dataset has no such picture at hand", "")
        headers = {"ETag": thumbnail.tag, "Cache-Control": "private, max-age=60"}
        if thumbnail.tag == tag:
            return Response(status_code=304, headers=headers)
        return Response(thumbnail.jpeg, media_type="image/jpeg", headers=headers)

    # ---------------------------------------------------------------- try it

    @app.post(
        "/api/predict",
        response_model=answers.Answered,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "description": "one picture a field, named by its view; in a field `views`, the next view that has none",
                            "additionalProperties": {"type": "string", "format": "binary"},
                        }
                    }
                },
            }
        },
    )
    async def predict(request: Request) -> Any:
        """The run's answer to one place, by 1 to V pictures. They are kept in memory alone, and forgotten with the answer."""
        if (why := scene.memory.why_not()) is not None:
            raise lacks(GeoError(f"this run can't answer pictures: {why}"), 503)
        if sending.statistics().tasks_waiting >= _MOST_WAITING:
            raise Refusal(503, "too many pictures wait for their turn", "try again in a moment")
        async with sending:
            async with asyncio.timeout(UPLOAD_SECONDS):
                pictures = await read_form(
                    request.stream(),
                    request.headers.get("content-type", ""),
                    request.headers.get("content-length"),
                    scene.run.config.model.view_names,
                )
            try:
                return await run_sync(
                    lambda: _answer(scene, pictures), abandon_on_cancel=True, limiter=answering
                )
            except PlainError as error:
                raise lacks(error, 503) from error

    # ---------------------------------------------------------------- play

    @app.get("/api/game", response_model=answers.Game)
    async def game(
        rounds: Annotated[int, Query(ge=1, le=MOST_ROUNDS)] = 5,
        seed: Annotated[int | None, Query(ge=0, lt=2**63, description="deals the same again")] = None,
    ) -> Any:
        """Held-out samples to guess, without a word of where they are."""
        return await read(lambda: deal(scene, rounds, seed))

    @app.post("/api/guess", response_model=answers.Judged)
    async def guess(guess: answers.Guess) -> Any:
        """A person's guess beside the run's answer, by the competition's score of one sample and by GeoGuessr's."""
        if guess.split != "val":
            raise Refusal(400, "guesses are of held-out samples", "split is val")
        if guess.state is not None and not 0 <= guess.state < len(scene.run.labels):
            raise Refusal(400, "there is no such class", "/api/run has them all")
        chosen("val")
        judged = await read(
            lambda: judge(scene, guess.sample_id, guess.latitude, guess.longitude, guess.state)
        )
        if judged is None:
            raise Refusal(404, "no held-out sample has this id", "/api/game deals some")
        return judged

    # ---------------------------------------------------------------- what goes wrong

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Any) -> Response:
        return _error(refusal.status, refusal.error, refusal.hint)

    @app.exception_handler(TimeoutError)
    async def stalled(_: Request, error: Any) -> Response:
        return _error(408, "nothing came for too long", "send it again")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Any) -> Response:
        # It is raised again, for the guard to say it where the server runs.
        return _error(500, "something went wrong here", "see where geo explore runs")

    @app.exception_handler(RequestValidationError)
    async def misunderstood(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        # Of JSON that is none the place is a number, which says nothing; names may be any text, and none is too long.
        where = ".".join(part for part in first["loc"][1:] if isinstance(part, str))
        message = harmless(f"{where}: {first['msg']}" if where else first["msg"])[:500]
        return _error(422, message, "/docs has what is asked for")

    async def misasked(_: Request, error: Any) -> Response:
        return _error(error.status_code, *_MISASKED[error.status_code])

    for status in _MISASKED:
        app.add_exception_handler(status, misasked)

    return app


def _answer(scene: Scene, pictures: dict[str, bytes]) -> dict[str, Any]:
    """What the run says of a place by pictures that were sent, in a thread."""
    memory: RunInMemory = scene.memory
    pixels = decode_pictures(pictures)
    place = place_of(pictures)
    answered = memory.answer_pictures(pixels)
    prediction = scene.prediction(answered.predictions)
    truth = None
    if place is not None:
        from geo_embed.geography import haversine_km

        km = haversine_km(prediction["latitude"], prediction["longitude"], *place)
        prediction["km"] = float(km)
        state = scene.state_at(*place)
        name = None if state is None else scene.run.labels.names[state]
        truth = {"state": state, "name": name, "latitude": place[0], "longitude": place[1]}
    location = place or (prediction["latitude"], prediction["longitude"])
    return {
        "truth": truth,
        "prediction": prediction,
        "distribution": distribution(answered.spread),
        "neighbours": scene.neighbours(answered, location),
    }


def _page_files() -> dict[str, bytes]:
    """The page's files by their names, read once: nothing else is ever served from the disk."""
    files: dict[str, bytes] = {}

    def walk(folder: Any, before: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{before}{entry.name}/")
            elif entry.name.rpartition(".")[2] in _TYPES:
                files[f"{before}{entry.name}"] = entry.read_bytes()

    page = resources.files("geo_embed.explorer").joinpath("page")
    if page.is_dir():
        walk(page, "")
    shared = resources.files("geo_embed.reporting").joinpath("page")
    return files | {name: shared.joinpath(name).read_bytes() for name in _SHARED}


def _file(files: dict[str, bytes], name: str) -> Response:
    if name not in files:
        raise Refusal(404, "the page has no such file", "")
    return Response(
        files[name], media_type=_TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"}
    )


def _error(status: int, error: str, hint: str) -> Response:
    return JSONResponse(
        {"error": error, "hint": hint}, status_code=status, headers={"Cache-Control": "no-store"}
    )
