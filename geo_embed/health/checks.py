"""What is there, what is missing, and what to type: the machine, the settings, the data, the weights, the stores and runs.

Nothing here may fail in an installation that is half broken: each check looks for itself, imports what it needs itself, and an
error of any kind is its finding.
"""

import importlib
import os
import platform
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from geo_embed.buckets import Address
from geo_embed.config import Config
from geo_embed.console import counted
from geo_embed.errors import GeoError, PlainError

_PACKAGE = "geo-embed"
# Imported, since what is installed may still not load: a library of the system can be missing.
_HEAVY = ("torch", "transformers", "zarr")
# Of memory and of disk: with less nothing works, with little some things don't.
_LEAST_BYTES, _FEW_BYTES = 100 << 20, 2 << 30
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PROGRAMS = {
    "kaggle": (("kaggle",), "geo submission send", "pip install kaggle"),
    "chromium": (_BROWSERS, "the tests of reports", "apt install chromium"),
}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        ok: False where something that commands need is missing or broken.
        message: what there is.
        hint: what to type, or nothing.
    """

    name: str
    ok: bool
    message: str
    hint: str = ""


def diagnose(settings: Callable[[], tuple[Config, dict[str, str]]]) -> list[Check]:
    """Look at everything that commands rely on; raises nothing.

    Args:
        settings: gives the effective settings, and where each comes from; where it raises, that is a finding, and the defaults
            are looked at.
    """
    checks = [_guarded("python", _python), _guarded("packages", _packages)]
    checks += [_guarded(name, lambda name=name: _library(name)) for name in _HEAVY]  # type: ignore[misc]
    config = Config()
    try:
        config, origins = settings()
        counts = Counter(origins.values())
        sources = ", ".join(f"{count} from {source}" for source, count in counts.items())
        checks.append(Check("settings", True, sources, "geo config init" if len(counts) == 1 else ""))
    except Exception as error:
        checks.append(_failed("settings", error, "geo config show"))
    for name, look in (
        ("device", _device),
        ("cores", _cores),
        ("memory", _memory),
        ("cache_dir", lambda config: _folder(config.paths.cache_dir)),
        ("runs_dir", lambda config: _folder(config.paths.runs_dir)),
        ("train data", lambda config: _data(config, "train")),
        ("test data", lambda config: _data(config, "test")),
        ("weights", lambda config: _of_each_backbone(config, _weights)),
        ("pace", lambda config: _of_each_backbone(config, _pace)),
        ("stores", _stores),
        ("runs", _runs),
    ):
        checks.append(_guarded(name, lambda look=look: look(config)))  # type: ignore[misc]
    checks += [_guarded(name, lambda name=name: _program(name)) for name in _PROGRAMS]  # type: ignore[misc]
    return [*checks, *_guarded_extras()]


def _guarded(name: str, look: Callable[[], tuple[bool, str, str]]) -> Check:
    try:
        return Check(name, *look())
    except Exception as error:
        return _failed(name, error)


def _failed(name: str, error: Exception, hint: str = "") -> Check:
    if isinstance(error, PlainError):
        return Check(name, False, str(error), error.hint or hint)
    if isinstance(error, ImportError):
        return Check(
            name, False, f"{error.name or 'a library'} can't be imported: {_line(error)}", _reinstall()
        )
    return Check(name, False, f"{type(error).__name__}: {_line(error)}", hint)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:300]


def _reinstall() -> str:
    return f"{shlex.quote(sys.executable)} -m pip install --force-reinstall {_PACKAGE}"


# ---------------------------------------------------------------- the installation


def _python() -> tuple[bool, str, str]:
    return (
        True,
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}",
        "",
    )


def _packages() -> tuple[bool, str, str]:
    """Our own version, and whether what it requires is installed in versions that it runs with."""
    from packaging.requirements import Requirement

    from geo_embed import __version__

    wrong = []
    for line in metadata.requires(_PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed}, where {requirement.specifier} is needed")
    package = f"{_PACKAGE} {__version__} in {Path(__file__).parents[1]}"
    if wrong:
        return (
            False,
            f"{package}: {'; '.join(wrong)}",
            f"{shlex.quote(sys.executable)} -m pip install {_PACKAGE}",
        )
    return True, package, ""


def _library(name: str) -> tuple[bool, str, str]:
    importlib.import_module(name)
    if name != "torch":
        return True, metadata.version(name), ""
    import torch

    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"built for CUDA {cuda}" if cuda else f"built for ROCm {hip}" if hip else "built without CUDA"
    return True, f"{torch.__version__}, {build}", ""


def _guarded_extras() -> Iterator[Check]:
    """Of every optional group of packages, what it lacks; none of it is needed."""
    try:
        from packaging.requirements import Requirement

        extras = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
        required = [Requirement(line) for line in metadata.requires(_PACKAGE) or []]
    except Exception:
        return
    for extra in extras:
        names = [
            requirement.name
            for requirement in required
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        missing = [name for name in names if find_spec(name.replace("-", "_")) is None and not _has(name)]
        if missing:
            command = f"pip install {shlex.quote(f'{_PACKAGE}[{extra}]')}"
            yield Check(f"extra {extra}", True, f"optional, not installed: {', '.join(missing)}", command)
        else:
            yield Check(
                f"extra {extra}", True, ", ".join(f"{name} {metadata.version(name)}" for name in names)
            )


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _program(name: str) -> tuple[bool, str, str]:
    commands, purpose, install = _PROGRAMS[name]
    path = next((program for command in commands if (program := shutil.which(command))), None)
    return (True, path, "") if path else (True, f"optional, for {purpose}; not on the PATH", install)


# ---------------------------------------------------------------- the machine


def _device(config: Config) -> tuple[bool, str, str]:
    import torch

    from geo_embed.devices import dtype_name, pick_device, pick_dtype

    device = pick_device(config.model.device)
    precision = dtype_name(pick_dtype(config.model.dtype, device))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return True, f"cuda: {card.name}, {_size(card.total_memory)}; backbones in {precision}", ""
    if device.type == "mps":
        return True, f"mps: Apple's GPU; backbones in {precision}, heads on the CPU", ""
    hint = ""
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        hint = (
            "an NVIDIA driver is here, but torch was built without CUDA: see https://pytorch.org/get-started"
        )
    return True, f"cpu; backbones in {precision}: large ones take long", hint


def _cores(config: Config) -> tuple[bool, str, str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch

        threads = f", torch computes in {counted(torch.get_num_threads(), 'thread')}"
    except ImportError:
        threads = ""
    limits = [
        f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ
    ]
    workers = config.inference.workers or os.cpu_count() or 1
    line = f"{usable} usable of {os.cpu_count()}{threads}; {workers} decode"
    return True, line + (f" ({', '.join(limits)})" if limits else ""), ""


def _memory(config: Config) -> tuple[bool, str, str]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return True, "not known on this system", ""
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    hint = "close other programs, or ask for less: --batch-size, --workers" if free < _FEW_BYTES else ""
    return free >= _LEAST_BYTES, f"{_size(free)} free of {_size(total)}", hint


def _folder(path: Path) -> tuple[bool, str, str]:
    """A folder that commands write into, or will make; or a place in a bucket, which is asked."""
    if isinstance(path, Address):
        return True, f"{path}: the bucket answers{'' if path.exists() else ', nothing there yet'}", ""
    existing = next((parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent)), path)
    if not existing.is_dir():
        return False, f"{existing} is no folder", "name another one: geo config show"
    free = shutil.disk_usage(existing).free
    line = f"{path}: {_size(free)} free{'' if existing == path else ', not made yet'}"
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        return (
            False,
            f"{path}: {existing} can't be read and written",
            f"chmod u+rwx {shlex.quote(str(existing))}",
        )
    return free >= _LEAST_BYTES, line, "free the disk" if free < _FEW_BYTES else ""


def _size(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))


# ---------------------------------------------------------------- the data and what was made of it


def _data(config: Config, split: str) -> tuple[bool, str, str]:
    from geo_embed.cache.store import list_stores, manifest_sha256
    from geo_embed.data.samples import load_samples, missing_images

    samples = load_samples(config, split)
    absent = missing_images(samples)
    embedded = any(
        store.attrs["manifest_sha256"] == manifest_sha256(samples)
        for store in list_stores(config.paths.cache_dir, split)
    )
    line = f"{samples.csv}: {counted(len(samples), 'sample')}, {counted(len(samples.view_names), 'view')}"
    if absent:
        total = len(samples) * len(samples.view_names)
        return (
            embedded,
            f"{line}; {len(absent):,} of {total:,} pictures are missing in {samples.image_root}"
            + (", and there are embeddings of them" if embedded else ""),
            f"geo data check --split {split}",
        )
    return True, f"{line}, all pictures there", ""


def _of_each_backbone(
    config: Config, look: Callable[[Config], tuple[bool, str, str]]
) -> tuple[bool, str, str]:
    """What there is to say of every backbone that the settings name, in one line; and the first thing to do about one."""
    models = [config.model.with_backbone(name) for name in config.model.backbone_names]
    looks = [look(config.model_copy(update={"model": model})) for model in models]
    faults = [answer for answer in looks if not answer[0]] or looks
    hints = [hint for _, _, hint in faults if hint]
    return all(good for good, _, _ in looks), "; ".join(line for _, line, _ in looks), (hints or [""])[0]


def _weights(config: Config) -> tuple[bool, str, str]:
    from geo_embed.backbones.weights import find_backbone, hash_weights
    from geo_embed.cache.store import list_stores

    name = config.model.backbone_name
    try:
        directory = find_backbone(name, download=False)
    except GeoError as error:
        imports = [store for store in list_stores(config.paths.cache_dir) if store.attrs["backbone"] == name]
        if imports:
            return True, f"{name}: not on this machine, and its embeddings are in the cache", ""
        return False, str(error), error.hint
    return True, f"{name} in {directory}, sha256 {hash_weights(directory)[:16]}", ""


def _pace(config: Config) -> tuple[bool, str, str]:
    """How long the backbone takes, and on a CPU in bfloat16, where that is faster."""
    import torch

    from geo_embed.backbones.pace import seconds_per_picture
    from geo_embed.console import duration
    from geo_embed.devices import bfloat16_gain, dtype_name, pick_device, pick_dtype

    model = config.model
    device, views = pick_device(model.device), len(model.view_names)
    dtype = pick_dtype(model.dtype, device)
    try:
        seconds = seconds_per_picture(model, device, dtype)
    except GeoError as error:
        return True, f"not known: {error.what}", ""
    hint, faster = "", ""
    if dtype == torch.float32 and bfloat16_gain(device) > 1:
        other = seconds_per_picture(model, device, torch.bfloat16)
        if other < seconds:
            faster = f", {duration(1000 * views * other)} in bfloat16"
            hint = "--set model.dtype=bfloat16: a store of its own"
    precision = dtype_name(dtype)
    times = f"{duration(1000 * views * seconds)} in {precision}{faster}"
    return (
        True,
        f"1,000 samples of {counted(views, 'view by', 'views by')} {model.backbone_name}: about {times}",
        hint,
    )


def _stores(config: Config) -> tuple[bool, str, str]:
    from geo_embed.cache.store import list_stores
    from geo_embed.cache.tidy import summarise
    from geo_embed.cache.verify import unreadable_stores

    summaries, damaged = summarise(list_stores(config.paths.cache_dir), {})
    damaged += unreadable_stores(config.paths.cache_dir)
    if damaged:
        store = shlex.quote(str(damaged[0].store))
        return False, f"{damaged[0].store}: {damaged[0].message}", f"geo cache verify --store {store}"
    if not summaries:
        return True, f"none in {config.paths.cache_dir} yet", "geo extract --split all"
    listed = [
        f"{store.split} by {store.backbone}, {store.samples:,} × {store.views} × {store.dim}, {store.complete:.0%} complete"
        for store in summaries
    ]
    partial = next((store for store in summaries if store.complete < 1), None)
    hint = (
        ""
        if partial is None
        else (f"geo extract --split {partial.split} --backbone {shlex.quote(partial.backbone)}")
    )
    return True, "; ".join(listed), hint


def _runs(config: Config) -> tuple[bool, str, str]:
    from geo_embed.runs.run import broken_runs, run_stores

    runs_dir = config.paths.runs_dir
    broken = broken_runs(runs_dir)
    if broken:
        return (
            False,
            f"{broken[0][0]}: {broken[0][1]}",
            "move it away, or fit it again: geo fit-heads --overwrite",
        )
    names = sorted({name for users in run_stores(runs_dir).values() for name in users})
    if not names:
        return True, f"none in {runs_dir} yet", "geo fit-heads"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return True, f"{len(names):,} in {runs_dir}: {shown}", ""
