"""Pictures that a browser sends: read from the stream into memory, within bounds of bytes and pixels, and decoded by our decoder."""

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.adoption.gps import read_gps
from geo_embed.console import counted
from geo_embed.data.images import UnreadableImage, decode, read_shape
from geo_embed.explorer.guard import Refusal

# Of one picture: a phone's have 5 to 15 MB and 12 to 50 megapixels.
MOST_BYTES, MOST_PIXELS = 24 << 20, 60_000_000
# Of what stands around pictures in a form.
_AROUND = 16 << 10
# The field of a picture that isn't named by its view.
ANY_VIEW = "views"


async def read_form(
    stream: AsyncIterator[bytes], content_type: str, length: str | None, views: Sequence[str]
) -> dict[str, bytes]:
    """The pictures of a form, by view; a picture in the field `views` goes to the view that its file is called by, else to the next that has none.

    Nothing is written to disk, and reading ends at the first byte too many.

    Args:
        stream: the body.
        content_type: of the request.
        length: what it claims of the body's length.
        views: V names.

    Raises:
        Refusal: 413 for too many bytes, 415 for what is no form, 400 for a broken one, for no picture, for more than V, or for a view that
            there is not or twice.
    """
    from python_multipart import MultipartParser
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(415, "pictures are sent as multipart/form-data", "name each field by its view")
    most = len(views) * (MOST_BYTES + _AROUND)
    if length is not None and length.isdecimal() and int(length) > most:
        raise _too_large()

    form = _Form(views)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        total = 0
        async for chunk in stream:
            total += len(chunk)
            if total > most:
                raise _too_large()
            parser.write(chunk)
        parser.finalize()
    except MultipartParseError as error:
        raise Refusal(400, "the form is broken", "send it again") from error
    if not form.ended:
        raise Refusal(400, "the form ends too soon", "send it again")
    if not form.pictures:
        raise Refusal(400, "no picture came", f"send 1 to {len(views)}: {', '.join(views)}")
    return {view: bytes(data) for view, data in form.pictures.items()}


class _Form:
    """What the parser tells, part by part."""

    def __init__(self, views: Sequence[str]) -> None:
        self._views = views
        self.pictures: dict[str, bytearray] = {}
        self.ended = False
        self._header = [bytearray(), bytearray()]
        self._headers: dict[bytes, bytes] = {}
        self._part: bytearray | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._collect(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._collect(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._add(data[start:end]),
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._headers, self._part = {}, None

    def _collect(self, part: int, data: bytes) -> None:
        # The parser itself bounds how much comes here.
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._headers[name.lower()] = value
        self._header = [bytearray(), bytearray()]

    def _open(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field == ANY_VIEW and ANY_VIEW not in self._views:
            named = options.get(b"filename", b"").decode("utf-8", "replace")
            free = [view for view in self._views if view not in self.pictures]
            field = next((view for view in free if view == named), free[0] if free else "")
            if not field:
                raise Refusal(
                    400, f"more than {counted(len(self._views), 'picture')}", "send at most one a view"
                )
        if field not in self._views:
            raise Refusal(400, "a field is named by no view", f"the views are {', '.join(self._views)}")
        if field in self.pictures:
            raise Refusal(400, f"two pictures of view {field}", "send at most one a view")
        self._part = self.pictures[field] = bytearray()

    def _add(self, data: bytes) -> None:
        assert self._part is not None
        if len(self._part) + len(data) > MOST_BYTES:
            raise _too_large()
        self._part += data

    def _finish(self) -> None:
        self.ended = True


def _too_large() -> Refusal:
    return Refusal(413, f"more than {MOST_BYTES >> 20} MB a picture", "send a smaller one")


def decode_pictures(pictures: Mapping[str, bytes]) -> dict[str, NDArray[np.uint8]]:
    """Pixels (H, W, 3) of each picture.

    Raises:
        Refusal: 413 for too many pixels, which the header says before any is decoded; 415 for what is no picture that can be read whole.
    """
    pixels = {}
    for view, data in pictures.items():
        try:
            height, width = read_shape(data)
            if height * width > MOST_PIXELS:
                raise Refusal(
                    413,
                    f"the picture of view {view} has {width}×{height} pixels, more than {MOST_PIXELS:,}",
                    "send a smaller one",
                )
            pixels[view] = decode(data)
        except UnreadableImage as error:
            raise Refusal(
                415, f"the picture of view {view} can't be read: {error}", "send it as a JPEG or PNG"
            ) from error
    return pixels


def place_of(pictures: Mapping[str, bytes]) -> tuple[float, float] | None:
    """Where the first picture that knows was taken, in degrees, by its EXIF."""
    for data in pictures.values():
        place = read_gps(io.BytesIO(data))
        if not isinstance(place, str) and abs(place[0]) <= 90 and abs(place[1]) <= 180:
            return place
    return None
