"""`geo data explore`: one self-contained HTML page about a dataset, before any training. It runs no script and asks no server for anything."""

import os
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np

from geo_embed import __version__
from geo_embed.config import Config
from geo_embed.console import counted
from geo_embed.data import images
from geo_embed.data.outputs import PAGES, check_output
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import replacing
from geo_embed.reporting.dataset import OUTSIDE_KM, Dataset, Ground, Part, findings_by_kind, survey
from geo_embed.reporting.html import to_plain_html
from geo_embed.reporting.looks import NEAR_BITS, Looks
from geo_embed.reporting.markup import (
    PICTURE_SIDE,
    figure,
    missing,
    table,
    tiles_of,
    to_bytes,
    to_km,
    to_text,
    to_url,
)
from geo_embed.reporting.svg_map import svg_map

_LISTED: Final = 20
_SHOWN: Final = 12
# The most places on the map.
_PLACES: Final = 12_000


def explore_data(
    config: Config,
    splits: list[str],
    out: Path | None = None,
    *,
    pictures: bool = False,
    limit: int | None = None,
) -> tuple[Path, Dataset]:
    """Look at a dataset and write the page about it.

    Args:
        config: paths, views, workers; and how training would hold samples out.
        splits: `train`, `test` or both.
        out: the file; default `dataset.html` in the working directory.
        pictures: put a sample of pictures into it, small. Street-view providers forbid to pass theirs on.
        limit: decode the pictures of so many samples of a split only, evenly through the CSV, and of the others' read the headers.

    Returns:
        The file, and what it shows.

    Raises:
        GeoError: no split can be read, or the file can't be written.
    """
    path = Path("dataset.html") if out is None else out
    check_output(config.paths, path, PAGES)
    dataset = survey(config, splits, limit)
    text = to_page(dataset, config, pictures=pictures)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path, dataset


def to_page(dataset: Dataset, config: Config, *, pictures: bool = False) -> str:
    """The page, as `explore_data` writes it."""
    sections = [
        ("Places", "Where the samples lie", _where(dataset.ground)),
        ("Classes", "Samples per class", _classes(dataset)),
        ("Pictures", "Pictures", _pictures(dataset.parts)),
        ("Duplicates", "Duplicates and near duplicates", _duplicates(dataset)),
        ("Leaks", "What training would give away", _leaks(dataset, config)),
        ("Oddities", "What is odd", _odd(dataset)),
        ("Samples", "A sample of it", _samples(dataset, pictures)),
    ]
    name = config.paths.data_root.resolve().name or str(config.paths.data_root)
    credit = f"; {to_text(dataset.ground.drawn.credit)}" if dataset.ground else ""
    return to_plain_html(
        f"Dataset: {name}",
        f'<p class="eyebrow">Dataset</p><h1>{to_text(name)}</h1>{_tiles(dataset)}',
        sections,
        f"Made by geo_embed {to_text(__version__)} of {to_text(config.paths.data_root)}{credit}.",
        "data",
    )


def _tiles(dataset: Dataset) -> str:
    """The numbers that one looks for first."""
    tiles = [
        (f"{part.name} samples", f"{len(part.samples):,}")
        if part.samples is not None
        else (f"{part.name} samples", "can't be read")
        for part in dataset.parts
    ]
    if dataset.ground is not None:
        tiles.append(("classes", f"{len(dataset.ground.encoder):,}"))
    named = [part.samples for part in dataset.parts if part.samples is not None]
    if named:
        tiles.append(("views", f"{len(named[0].view_names)}: {', '.join(named[0].view_names)}"))
        tiles.append(("pictures named", f"{sum(int(samples.images.named.sum()) for samples in named):,}"))
    looks = [part.looks for part in dataset.parts if part.looks is not None]
    if looks:
        tiles.append(("pictures decoded", f"{sum(count_decoded(look) for look in looks):,}"))
        tiles.append(("their files", to_bytes(sum(int(look.size.sum()) for look in looks))))
    problems = sum(len(part.checked.problems) for part in dataset.parts) + sum(
        len(look.faults) for look in looks
    )
    tiles.append(("problems", f"{problems:,}"))
    return tiles_of(tiles)


def _where(ground: Ground | None) -> str:
    """The map of the training samples, and how near they are to one another."""
    if ground is None:
        return missing("No map", "There are no training samples with places to show.")
    rows = np.arange(len(ground.truth))
    shown = rows if len(rows) <= _PLACES else rows[np.linspace(0, len(rows) - 1, _PLACES).astype(int)]
    thinned = "" if len(shown) == len(rows) else f" {len(shown):,} of them are drawn, evenly through the CSV."
    near = ground.nearest_km[np.isfinite(ground.nearest_km)]
    apart = (
        ""
        if not len(near)
        else f" From one to the next it is {to_km(float(np.median(near)))} in the middle. Samples with another within 100 m: {int((near < 0.1).sum()):,}."
    )
    caption = f"Training samples: {len(rows):,}.{thinned}{apart}"
    outside = ""
    if ground.outside:
        outside = (
            f"<p>Samples more than {OUTSIDE_KM:g} km outside of the outline of their class: {len(ground.outside):,}; "
            'they are listed under <a href="#oddities">what is odd</a>.</p>'
        )
    return f"<figure><figcaption><p>{to_text(caption)}</p>{outside}</figcaption>{svg_map(ground, shown)}</figure>"


def _classes(dataset: Dataset) -> str:
    ground = dataset.ground
    if ground is None:
        return missing("No classes", "Only training samples have classes.")
    counts = np.bincount(ground.labels, minlength=len(ground.encoder))
    order = np.argsort(-counts, kind="stable")
    few = int((counts < 5).sum())
    summary = (
        f"{len(counts):,} classes of {counts.min():,} to {counts.max():,} samples, {np.median(counts):,.0f} in the middle. "
        + (f"{few:,} have fewer than five, which is hard to learn from. " if few else "")
        + f"Who always answers {ground.encoder.names[order[0]]} is right in {100 * counts.max() / counts.sum():.1f} % of the training samples."
    )
    bars = "".join(
        f'<li><span class="name" title="{to_text(ground.encoder.names[k])}">{to_text(ground.encoder.names[k])}</span>'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="{100 * counts[k] / counts.max():.2f}" height="10"/></svg>'
        f'<span class="count">{counts[k]:,}</span></li>'
        for k in order
    )
    return (
        f'<p class="lead">{to_text(summary)}</p><figure class="panel"><ol class="bars">{bars}</ol></figure>'
    )


def _pictures(parts: list[Part]) -> str:
    looked = [part for part in parts if part.looks is not None and part.samples is not None]
    if not looked:
        roots = ", ".join(str(part.samples.image_root) for part in parts if part.samples is not None)
        return missing("No pictures", f"There is no picture in {roots or 'the folders of the settings'}.")
    sizes: Counter[tuple[str, str]] = Counter()
    files = []
    for part in looked:
        looks, samples = part.looks, part.samples
        assert looks is not None
        assert samples is not None
        for width, height in zip(looks.width[looks.present], looks.height[looks.present], strict=True):
            sizes[(part.name, f"{width} × {height}")] += 1
        for v, view in enumerate(samples.view_names):
            existing, size = looks.present[looks.decoded, v], looks.size[:, v][looks.size[:, v] > 0]
            named = samples.images.named[:, v]
            middle = to_bytes(int(np.median(size))) if len(size) else "–"
            spread = f"{to_bytes(int(size.min()))} – {to_bytes(int(size.max()))}" if len(size) else "–"
            files.append(
                (
                    part.name,
                    view,
                    f"{int(named.sum()):,}",
                    f"{int(existing.sum()):,}",
                    f"{int(looks.blank[:, v].sum()):,}",
                    middle,
                    spread,
                )
            )
    by_size = [(name, size, f"{count:,}") for (name, size), count in sizes.most_common(_LISTED)]
    more = len(sizes) - len(by_size)
    return (
        '<div class="figures matrix">'
        + figure(
            "Files by view",
            f"{_how_read(looked)} Blank: hardly any difference between its parts.",
            table(
                ("split", "view", "named", "decoded", "blank", "median file", "smallest to largest"),
                files,
                numbers=2,
            ),
        )
        + figure(
            "Sizes in pixels",
            f"Width × height, the most frequent first{f'; {more:,} more sizes' if more > 0 else ''}.",
            table(("split", "size", "pictures"), by_size, numbers=2),
        )
        + "</div>"
    )


def count_decoded(looks: Looks) -> int:
    """How many pictures of a split could be decoded."""
    return int(looks.present[looks.decoded].sum())


def _how_read(parts: list[Part]) -> str:
    """What of the pictures was read: all, or the pixels of some."""
    counts = [
        f"{int(part.looks.decoded.sum()):,} of {len(part.looks.decoded):,} {part.name} samples"
        for part in parts
        if part.looks is not None and not part.looks.decoded.all()
    ]
    if not counts:
        return "Every picture was decoded."
    return (
        f"Decoded (--limit): the pictures of {' and '.join(counts)}, evenly through the CSV. Of the others files and headers were read; "
        "what is damaged, blank or nearly the same was looked for among the decoded ones."
    )


def _duplicates(dataset: Dataset) -> str:
    if all(part.looks is None for part in dataset.parts):
        return missing("Not looked for", "Duplicates are looked for in pictures, and there are none.")
    lines = [
        f"Pictures of {name} that occur, byte by byte, in several samples: {count:,}."
        for name, count in dataset.shared.items()
    ]
    if dataset.overlap is not None:
        lines.append(f"Test samples with a picture that a training sample has, too: {dataset.overlap:,}.")
    across = sum(twin.across for twin in dataset.twins)
    of_them = f", a test sample with a training sample: {across:,}" if dataset.overlap is not None else ""
    all_decoded = all(part.looks is None or part.looks.decoded.all() for part in dataset.parts)
    among = "" if all_decoded else ", among those that were decoded"
    lines.append(
        f"Pairs of samples with a picture that is nearly the same, and not the same file: {len(dataset.twins):,}{of_them}{among}. Their difference "
        f"hashes agree in all but {NEAR_BITS} of 128 bits at most; dull pictures agree by chance: look before you believe."
    )
    body = "".join(f"<p>{to_text(line)}</p>" for line in lines)
    if dataset.twins:
        rows = [
            (twin.first, twin.second, "–" if twin.km is None else to_km(twin.km))
            for twin in dataset.twins[:_LISTED]
        ]
        more = f", the first {_LISTED} of {len(dataset.twins):,}" if len(dataset.twins) > _LISTED else ""
        caption = f"Near duplicates: those across splits first, then those farthest apart{more}"
        body += (
            f"<p>{to_text(caption)}.</p>{table(('sample', 'and', 'apart'), rows, numbers=2, caption=caption)}"
        )
    return f'<div class="panel">{body}</div>'


def _leaks(dataset: Dataset, config: Config) -> str:
    leakage = dataset.leakage
    if leakage is None:
        return missing("Not known", dataset.no_leakage)
    training = config.training
    if not leakage.held_out:
        return missing("Nothing is held out", "There are too few samples to hold some out.")
    compared = (
        "places and embeddings"
        if leakage.embeddings
        else "places alone, since no embeddings are cached for this backbone"
    )
    summary = (
        f"With training.validation={training.validation}, {counted(leakage.held_out, 'sample')} would be held out. Given away by a training "
        f"sample, by {compared}: {leakage.leaking:,}."
    )
    if leakage.leaking and training.validation == "random":
        summary += " Their score will be too good; training.validation=spatial holds places out whole."
    kinds = Counter(leak["kind"] for leak in leakage.leaks)
    rows = [
        (
            leak["kind"],
            leak["held_out"],
            leak["training"],
            to_km(leak["value"]) if leak["kind"] == "place" else f"cosine {leak['value']:.4f}",
        )
        for leak in leakage.leaks[:_LISTED]
    ]
    body = f'<p class="{"bad" if leakage.leaking else "ok"}">{to_text(summary)}</p>'
    if rows:
        by_kind = ", ".join(f"{count:,} by {kind}" for kind, count in kinds.items())
        body += table(("kind", "held out", "training", "how near"), rows, caption=f"Leaks: {by_kind}")
    return f'<div class="panel">{body}</div>'


def _odd(dataset: Dataset) -> str:
    rows: list[tuple[str, ...]] = []
    for part in dataset.parts:
        for group in findings_by_kind(part.checked):
            for k, finding in enumerate(group["first"]):
                kind = f"{group['what']}: {group['kind']}, {group['count']:,}" if not k else ""
                rows.append((part.name if not k else "", kind, finding.message, _place(finding.where)))
        if part.looks is not None and part.samples is not None:
            for k, (i, v, why) in enumerate(part.looks.faults[:5]):
                kind = f"problem: undecodable-image, {len(part.looks.faults):,}" if not k else ""
                rows.append(
                    (
                        part.name if not k else "",
                        kind,
                        why,
                        f"{part.samples.sample_id[i]}, {part.samples.images[i, v]}",
                    )
                )
    ground = dataset.ground
    train = next((part.samples for part in dataset.parts if part.name == "train"), None)
    if ground is not None and train is not None and train.truth is not None:
        names = dict(zip(ground.encoder.state_idx.tolist(), ground.encoder.names, strict=True))
        for k, (row, km) in enumerate(ground.outside[:5]):
            kind = f"warning: outside-outline, {len(ground.outside):,}" if not k else ""
            where = f"{train.truth.latitude[row]:.4f}, {train.truth.longitude[row]:.4f}"
            state = names[int(train.truth.state_idx[row])]
            rows.append(
                (
                    "train" if not k else "",
                    kind,
                    f"{to_km(km)} outside of {state}, at {where}",
                    str(train.sample_id[row]),
                )
            )
    if not rows:
        return '<div class="panel"><p class="ok">Nothing odd was found.</p></div>'
    return figure(
        "Findings",
        "Of each kind the first five; geo data check lists the rest.",
        table(("split", "kind and count", "what", "where"), rows),
    )


def _samples(dataset: Dataset, pictures: bool) -> str:
    ground, body = dataset.ground, []
    names = (
        {}
        if ground is None
        else dict(zip(ground.encoder.state_idx.tolist(), ground.encoder.names, strict=True))
    )
    for part in dataset.parts:
        samples = part.samples
        if samples is None or not len(samples):
            continue
        rows = np.unique(np.linspace(0, len(samples) - 1, _SHOWN).astype(int))
        if pictures and part.looks is not None:
            cards = "".join(_card(samples, int(row), names) for row in rows)
            body.append(f'<h3>{to_text(part.name)}</h3><div class="pictures">{cards}</div>')
            continue
        truth = samples.truth
        chosen = [
            (
                str(samples.sample_id[row]),
                *(
                    ()
                    if truth is None
                    else (
                        names.get(int(truth.state_idx[row]), str(truth.state_idx[row])),
                        f"{truth.latitude[row]:.4f}",
                        f"{truth.longitude[row]:.4f}",
                    )
                ),
                *(str(name) or "–" for name in samples.images[row]),
            )
            for row in rows
        ]
        head = (
            "sample",
            *(() if truth is None else ("class", "latitude", "longitude")),
            *samples.view_names,
        )
        body.append(figure(part.name, "Evenly through the CSV.", table(head, chosen)))
    note = (
        ""
        if pictures
        else '<p class="lead">Without pictures: street-view providers forbid to pass theirs on. <code>--pictures</code> puts small ones in.</p>'
    )
    return note + "".join(body)


def _card(samples: Samples, row: int, names: dict[int, str]) -> str:
    truth = samples.truth
    place = (
        ""
        if truth is None
        else f": {names.get(int(truth.state_idx[row]), '?')}, {truth.latitude[row]:.3f}, {truth.longitude[row]:.3f}"
    )
    views = "".join(
        _thumbnail(samples, str(name), view) if name else f'<span class="none">no {to_text(view)}</span>'
        for name, view in zip(samples.images[row], samples.view_names, strict=True)
    )
    return f'<figure><figcaption>{to_text(samples.sample_id[row])}{to_text(place)}</figcaption><div class="views scroll">{views}</div></figure>'


def _thumbnail(samples: Samples, name: str, view: str) -> str:
    """A picture as it is put into the page: decoded and written anew, so that nothing of its file but pixels gets in."""
    from PIL import Image

    try:
        pixels = images.decode(samples.pictures.read(name), accept_damage=True)
    except (OSError, GeoError, images.UnreadableImage):
        return f'<span class="none">{to_text(view)}: can’t be read</span>'
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    return f'<img src="{to_url(image)}" alt="{to_text(view)}" width="{image.width}" height="{image.height}">'


def _place(where: str) -> str:
    """Where a finding is, without the folders that all have in common."""
    return where.rpartition(os.sep)[2]
