"""The loose pictures of a small country packed into shards, as its user would do it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet


def pack(folder: Path, kind: str, *, shards: int = 2) -> None:
    """Move the pictures of a folder into shards in it: `tar`, or `parquet` with Hugging Face's columns."""
    names = sorted(path.name for path in folder.iterdir())
    for number in range(shards):
        part = names[number::shards]
        if kind == "tar":
            target = folder / f"part-{number}.tar"
            subprocess.run(["tar", "-C", folder, "-cf", target, *part], check=True)
        else:
            write_parquet(
                folder / f"part-{number}.parquet", {name: (folder / name).read_bytes() for name in part}
            )
    for name in names:
        (folder / name).unlink()


def write_parquet(path: Path, pictures: dict[str, bytes], **options: Any) -> None:
    """Pictures by name, in a column of {bytes, path}, in groups of seven rows."""
    rows = [{"bytes": data, "path": name} for name, data in pictures.items()]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind), "label": list(range(len(rows)))})
    parquet.write_table(table, path, **({"row_group_size": 7} | options))
