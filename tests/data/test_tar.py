"""A tar archive's headers, as several programs write them, say where its files lie; what isn't whole is refused in one line."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from geo_embed.data import tar
from geo_embed.errors import GeoError

LONG = "a/" * 120 + "long name.jpg"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def walked(data: bytes) -> list[tar.Member]:
    return list(tar.members(lambda start, count: data[start : start + count], len(data), Path("some.tar")))


def packed(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    return {
        os.fsdecode(member.name): data[member.start : member.start + member.size]
        for member in walked(data)
        if member.kind == 0
    }


def refusal(data: bytes) -> tuple[str | None, dict[str, bytes]]:
    """What is said of an archive, or what it holds."""
    try:
        return None, contents(data)
    except GeoError as error:
        return error.what, {}


@pytest.mark.parametrize("form", FORMATS)
def test_files_lie_where_each_format_says(form: str) -> None:
    files = {"a.jpg": b"1", "empty": b"", "größe/é.jpg": b"x" * 512, "b": b"y" * 513, "p" * 99 + "/q": b"2"}
    if form != "ustar":
        files[LONG] = b"far down"
        files["after.jpg"] = b"a short name again"
    assert contents(packed(files, FORMATS[form])) == files


def test_records_for_a_whole_archive_and_sizes_of_links_shift_nothing() -> None:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "a.jpg", 700
    head, end = packed({"a.jpg": b"1" * 700}, pax_headers={"comment": "who packed it"}), bytes(1024)
    tail = packed({"b.jpg": b"2"})
    data = head[: walked(head)[0].start + 1024] + link.tobuf() + tail[: walked(tail)[0].start + 512] + end
    assert b"who packed it" in data
    assert contents(data) == {"a.jpg": b"1" * 700, "b.jpg": b"2"}


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_tar_itself_packs_is_read(tmp_path: Path, form: str) -> None:
    files = {"one.jpg": b"1" * 700, "sub/two.jpg": b"22"}
    if form in ("oldgnu", "gnu", "posix"):
        files[LONG] = b"3" * 1024
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["tar", f"--format={form}", "-C", "in", "-cf", "out.tar", "."], cwd=tmp_path, check=True)
    assert contents((tmp_path / "out.tar").read_bytes()) == {
        f"./{name}": data for name, data in files.items()
    }


def test_links_devices_and_sparse_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    os.link(tmp_path / "a.jpg", tmp_path / "hard.jpg")
    (tmp_path / "soft.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse.jpg").open("wb") as file:
        for k in range(40):
            file.seek(k << 16)
            file.write(b"x")
    (tmp_path / "z.jpg").write_bytes(b"last")
    names = ["a.jpg", "hard.jpg", "soft.jpg", "pipe.jpg", "folder", "sparse.jpg", "z.jpg"]
    for form in ("gnu", "posix"):
        subprocess.run(
            ["tar", "--sparse", f"--format={form}", "-cf", "all.tar", *names], cwd=tmp_path, check=True
        )
        data = (tmp_path / "all.tar").read_bytes()
        kinds = {os.fsdecode(member.name).strip("/"): tar.KINDS[member.kind] for member in walked(data)}
        assert list(kinds) == names
        assert kinds["a.jpg"] == kinds["z.jpg"] == ""
        for name, word in zip(
            names[1:-1], ("hard link", "symbolic", "pipe", "directory", "sparse"), strict=True
        ):
            assert word in kinds[name]
        assert contents(data) == {"a.jpg": b"picture", "z.jpg": b"last"}


def test_sizes_beyond_octal_digits_are_read_without_their_bytes() -> None:
    entry = tarfile.TarInfo("huge.jpg")
    entry.size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        head = entry.tobuf(form)
        size = len(head) + entry.size
        (member,) = tar.members(lambda at, n, head=head: head[at : at + n], size, Path("huge.tar"))  # type: ignore[misc]
        assert (member.name, member.size, member.start) == (b"huge.jpg", 9 << 30, len(head))


@pytest.mark.parametrize("form", FORMATS)
def test_wherever_an_archive_is_cut_it_says_so_or_gives_whole_files(form: str) -> None:
    files = {f"{k}.jpg": bytes([k]) * (300 * k) for k in range(1, 5)}
    if form != "ustar":
        files |= {LONG: b"long", "last.jpg": b"last"}
    data = packed(files, FORMATS[form])
    end = max(member.start + member.size for member in walked(data))
    whole = 0
    for cut in range(end):
        error, read = refusal(data[:cut])
        assert error is None or "cut short" in error, cut
        if error is None:
            assert all(files[name] == content for name, content in read.items()), cut
            whole += 1
    # Between two files, an archive without its end is one of fewer files.
    assert whole <= len(files) * 512 + 1
    assert contents(data[:end]) == files


def test_damage_anywhere_in_a_header_is_no_other_list_of_files() -> None:
    files = {"a.jpg": b"1" * 100, LONG: b"2" * 600, "c.jpg": b"3"}
    data = packed(files, tarfile.GNU_FORMAT)
    first = walked(data)
    refused = 0
    for place in range(512):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        error, read = refusal(bytes(damaged))
        assert error in (None, "not a readable tar archive: it isn't one")
        # Spaces and zeros around the checksum's digits say nothing.
        assert error or read == contents(data)
        refused += error is not None
    assert refused > 500
    second = next(m.start for m in first if m.name == b"a.jpg") + 512
    damaged = bytearray(data)
    damaged[second + 3] ^= 1
    with pytest.raises(GeoError, match=rf"its header at byte {second:,} is damaged"):
        walked(bytes(damaged))


@pytest.mark.parametrize(("mode", "what"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_archive_is_refused_with_what_unpacks_it(mode: str, what: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(GeoError, match=f"compressed by {what}") as caught:
        walked(buffer.getvalue())
    assert caught.value.hint.startswith(
        f"un{what}" if what == "xz" else {"gzip": "gunzip"}.get(what, "bunzip2")
    )


def test_what_is_no_archive_is_refused_and_an_empty_one_is_empty() -> None:
    assert walked(b"") == walked(packed({})) == []
    for data in (b"<html>not found</html>" * 100, b"x" * 100):
        with pytest.raises(GeoError):
            walked(data)


def test_a_header_that_claims_too_much_takes_no_memory() -> None:
    claims = tarfile.TarInfo("name")
    claims.type, claims.size = b"L", 7 << 30
    head = claims.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(GeoError, match="a name of 7,516,192,768 bytes"):
        list(tar.members(lambda at, n: head[at : at + n], 8 << 30, Path("claims.tar")))
