"""Our decoder against PIL's over damaged files: equal, or refused by name. Each draw follows from its number alone, as long as the corpus
is the same.

    python tests/fuzz/differential.py --seconds 3600 --seed 1 --out fuzz-findings

prints the number of each finding and where its bytes lie, and exits with 1 where there are some.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from pictures import corpus, png_chunk, with_segment

from geo_embed.data.images import DamagedImage, UnreadableImage, decode

# Of our decoding, twice, and of PIL's: 100 megapixels are allowed, and take some seconds and gigabytes of both together.
MOST_SECONDS, MOST_MEGABYTES = 20.0, 3000
Pixels = NDArray[np.uint8]
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@cache
def files() -> list[tuple[str, bytes]]:
    """The corpus without what this PIL doesn't write."""
    made = []
    for name, make in corpus():
        try:
            made.append((name, make()))
        except (KeyError, OSError, ValueError, ImportError, SystemError):
            continue
    return made


def damaged(number: int) -> tuple[str, bytes]:
    """The number-th damaged file: what it was, and its bytes."""
    draw = random.Random(number)
    name, whole = draw.choice(files())
    data = bytearray(whole)
    kind = draw.choice(
        ("bytes", "bytes", "head", "bits", "cut", "join", "insert", "delete", "swap", "segment")
    )
    if kind in ("bytes", "head"):
        reach = len(data) if kind == "bytes" else min(len(data), 256)
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            data[draw.randrange(reach)] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))
    elif kind == "bits":
        for _ in range(draw.choice((1, 2, 8))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
        data += draw.choice((b"", b"\xff\xd9", b"\0;", b"\0\0\0\0IEND\xaeB`\x82", b"\0" * 50))
    elif kind == "join":
        data += draw.choice(files())[1]
    elif kind == "insert":
        place = draw.randrange(len(data) + 1)
        data[place:place] = draw.randbytes(draw.choice((1, 2, 10, 300)))
    elif kind == "delete":
        place = draw.randrange(len(data))
        del data[place : place + draw.choice((1, 2, 10, 300))]
    elif kind == "swap":
        start, stop = sorted(draw.randrange(len(data)) for _ in range(2))
        data[start:stop] = bytes(reversed(data[start:stop]))
    else:
        data[:] = with_odd_segment(bytes(data), draw)
    return f"{name}, {kind}", bytes(data)


def with_odd_segment(data: bytes, draw: random.Random) -> bytes:
    """A JPEG or PNG with EXIF, XMP, text or a profile that makes little sense."""
    entry = struct.pack(
        "<HHI",
        draw.choice((0x0112, 0x011A, 0x8769, 0x8825, draw.randrange(65536))),
        draw.randrange(20),
        draw.choice((0, 1, 2, 2**31)),
    )
    count = draw.choice((1, 2, 65535))
    exif = (
        b"II*\0" + struct.pack("<IH", draw.choice((8, 8, 8, 2**31)), count) + (entry + draw.randbytes(4)) * 2
    )
    if data[:2] == b"\xff\xd8":
        marker, body = draw.choice(
            (
                (0xE1, b"Exif\0\0" + exif),
                (0xE2, b"MPF\0" + exif),
                (0xE2, b"ICC_PROFILE\0" + draw.randbytes(20)),
                (0xED, b"Photoshop 3.0\x008BIM" + draw.randbytes(20)),
                (0xE0, draw.randbytes(9)),
                (0xFE, draw.randbytes(9)),
            )
        )
        return with_segment(data, marker, body)
    if data[:4] == b"\x89PNG":
        kind = draw.choice(
            (b"eXIf", b"iTXt", b"zTXt", b"tEXt", b"iCCP", b"gAMA", b"cHRM", b"acTL", b"fcTL", b"pHYs")
        )
        chunk = bytearray(
            png_chunk(kind, draw.choice((exif, draw.randbytes(9), b"a\0\1" + draw.randbytes(9))))
        )
        if draw.random() < 0.3:
            chunk[-1] ^= 1
        return data[:33] + bytes(chunk) + data[33:]
    return data


def by_pil(data: bytes) -> tuple[Pixels | None, str]:
    """What PIL makes of a file by its own strictness: RGB, transparency over white; None with the reason where it refuses or goes deep."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            if image.mode in _DEEP:
                return None, "deep"
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.asarray(image.convert("RGB")), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def finding(data: bytes) -> tuple[str, str]:
    """(what is wrong with our answer, empty where nothing is; what the answer was)."""
    try:
        decoded: Pixels | None = decode(data, accept_damage=True)
        answer = "decoded"
    except UnreadableImage as error:
        decoded, answer = None, str(error)
        if not answer or "\n" in answer or not answer.isprintable() or len(answer) > 400:
            return f"no line for people: {answer!r}", answer
    except BaseException:
        return traceback.format_exc(), "another exception"
    try:
        strict = decode(data)
        if decoded is None or not np.array_equal(strict, decoded):
            return "another picture where damage isn't accepted", answer
    except DamagedImage as error:
        answer = f"damaged: {error}" if decoded is not None else answer
    except UnreadableImage as error:
        if decoded is not None:
            return f"unreadable though accepted: {error}", answer
    except BaseException:
        return traceback.format_exc(), "another exception"
    if decoded is None:
        return "", "refused"
    reference, reason = by_pil(data)
    if reference is None:
        # PIL's own strictness about text and profiles, and depth, are others' tests.
        return "", f"more than PIL: {reason}"
    if reference.shape != decoded.shape:
        return f"{decoded.shape} where PIL has {reference.shape}", answer
    apart = int(np.abs(reference.astype(int) - decoded).max())
    return (f"up to {apart} grey levels from PIL" if apart else ""), answer


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0, help="the first number")
    parser.add_argument("--count", type=int, help="so many files instead of seconds")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    end, number, finding_count = time.monotonic() + arguments.seconds, arguments.seed, 0
    answers: Counter[str] = Counter()
    files()
    most = peak_megabytes()
    while number - arguments.seed < arguments.count if arguments.count else time.monotonic() < end:
        name, data = damaged(number)
        started = time.process_time()
        wrong, answer = finding(data)
        seconds, megabytes = time.process_time() - started, peak_megabytes()
        if seconds > MOST_SECONDS or megabytes > most + MOST_MEGABYTES:
            wrong = wrong or f"{seconds:.1f} s, {megabytes - most:,} MB more than before"
        most = max(most, megabytes)
        answers[answer.split(":")[0]] += 1
        if wrong:
            finding_count += 1
            arguments.out.mkdir(parents=True, exist_ok=True)
            path = arguments.out / f"{number}.bin"
            path.write_bytes(data)
            print(f"number {number} ({name}): {wrong.strip()}\n  bytes: {path}", flush=True)
        number += 1
    print(
        f"{number - arguments.seed:,} files from number {arguments.seed}: {finding_count} findings, {most:,} MB at most"
    )
    print(", ".join(f"{answer}: {count:,}" for answer, count in answers.most_common(12)))
    return 1 if finding_count else 0


if __name__ == "__main__":
    sys.exit(main())
