"""Parts that are chosen by name: fusions, heads, losses, calibrations; what each reads, and what it costs.

A registry knows its built-in names without importing them: `geo --help` lists them, and a setting is judged by them, before
torch is there. The module that defines a name is imported when the entry is asked for, and its decorator registers it:

    @FUSIONS.register("largest", flop=lambda size: 0)
    class Largest(FusionModule):
        ...

More names come from a file or a module named in `model.plugins` (`plugins.py`), or from an installed package with an entry
point in the registry's group, whose name is the entry's. Entry points are looked for when a name is asked for that isn't
known, not before.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from geo_embed.errors import GeoError

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Size:
    """What a fusion or head is built for, and what its cost depends on.

    Attributes:
        dim: D, width of an embedding; for a head, of the fused vector it reads.
        views: V of a sample.
        width, depth: of hidden layers (`model.head_hidden`, `model.head_depth`).
        gps_width: of the second hidden layer of a GPS head (`model.gps_hidden`).
        classes: C.
        cells: K; 0 for heads without cells.
        deep: whether the fused vector has passed through hidden layers already.
    """

    dim: int
    views: int
    width: int
    depth: int
    gps_width: int = 0
    classes: int = 0
    cells: int = 0
    deep: bool = False


@dataclass(frozen=True)
class Entry(Generic[Made]):
    """One name of a registry.

    Attributes:
        name: what settings call it.
        make: the class or function that was registered.
        settings: dotted settings that have an effect through it.
        flop: floating-point operations per sample and training step: forward, and the gradients of its weights and of what
            lies between them, not of its input. None for what costs next to nothing beside the networks.
    """

    name: str
    make: Made
    settings: frozenset[str]
    flop: Callable[[Size], int] | None


class Registry(Generic[Made]):
    """Entries by name.

    Args:
        what: an entry, in a word, for messages.
        setting: that chooses one.
        built_in: names and the modules whose import registers them.
        group: of entry points that packages offer entries by.
        priced: whether an entry has to say what it costs: an unknown price would count as none.
    """

    def __init__(
        self, what: str, setting: str, built_in: Mapping[str, str], group: str, *, priced: bool = False
    ) -> None:
        self.what, self.setting, self.group, self.priced = what, setting, group, priced
        self.built_in = dict(built_in)
        self._entries: dict[str, Entry[Made]] = {}

    def register(
        self, name: str, *, settings: Iterable[str] = (), flop: Callable[[Size], int] | None = None
    ) -> Callable[[Made], Made]:
        """Decorator that makes a class or function an entry. See `Entry` for the arguments.

        Raises:
            GeoError: the name is taken by another module, or a cost is needed and not given.
        """
        if self.priced and flop is None:
            raise GeoError(
                f"the {self.what} {name!r} doesn't say what it costs", hint="register(…, flop=lambda size: …)"
            )

        def add(make: Made) -> Made:
            # The same module may say it again: a notebook's cell is run twice.
            owner = self._entries[name].make.__module__ if name in self._entries else self.built_in.get(name)
            if owner not in (None, make.__module__):
                raise GeoError(
                    f"there is a {self.what} {name!r} already, in {owner}",
                    where=make.__module__,
                    hint="register it under another name",
                )
            self._entries[name] = Entry(name, make, frozenset(settings), flop)
            return make

        return add

    def forget(self, module: str) -> None:
        """Take away what a module registered."""
        self._entries = {k: entry for k, entry in self._entries.items() if entry.make.__module__ != module}

    def __contains__(self, name: object) -> bool:
        """Whether an entry of this name can be had; imports nothing."""
        return name in self.built_in or name in self._entries or self._offer(name) is not None

    def __getitem__(self, name: str) -> Entry[Made]:
        """The entry of a name; imports what defines it, if need be.

        Raises:
            GeoError: there is none, or the package that offers it fails.
        """
        if name not in self._entries:
            if name in self.built_in:
                import_module(self.built_in[name])
            elif (offer := self._offer(name)) is not None:
                self._load(offer)
            else:
                raise GeoError(
                    f"no such {self.what}: {name!r}",
                    where=self.setting,
                    hint=self._nearest(name) or self.listed(),
                )
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Built-in names, then those registered since."""
        return tuple(dict.fromkeys([*self.built_in, *self._entries]))

    def listed(self) -> str:
        """The known names as a phrase: 'a', 'b' or 'c'."""
        *most, last = map(repr, self.names())
        return f"{', '.join(most)} or {last}" if most else last

    def check(self, name: str) -> str:
        """The name, if it is known. Raises ValueError, for settings, with the known names and the nearest."""
        if name not in self:
            near = self._nearest(name)
            raise ValueError(f"Input should be {self.listed()}" + (f" ({near})" if near else ""))
        return name

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(str(name), self.names(), n=1)
        return f"did you mean {near[0]!r}?" if near else ""

    def _offer(self, name: object) -> EntryPoint | None:
        offers = entry_points(group=self.group, name=name) if isinstance(name, str) else ()
        return next(iter(offers), None)

    def _load(self, offer: EntryPoint) -> None:
        where = f"entry point {offer.name!r} of {self.group}"
        try:
            offer.load()
        except GeoError:
            raise
        except Exception as error:
            raise GeoError(
                f"the plugin {offer.value} fails: {type(error).__name__}: {error}".splitlines()[0],
                where=where,
            ) from error
        if offer.name not in self._entries:
            raise GeoError(f"{offer.value} registers no {self.what} {offer.name!r}", where=where)


FUSIONS: Registry[Any] = Registry(
    "fusion",
    "model.fusion",
    dict.fromkeys(
        ("average", "concat", "attention", "weighted", "transformer", "evidence"), "geo_embed.heads.fusion"
    ),
    "geo_embed.fusions",
    priced=True,
)
HEADS: Registry[Any] = Registry(
    "head",
    "model.head",
    {name: f"geo_embed.heads.{name}" for name in ("separate", "dual", "hierarchical", "geocells", "probe")}
    | {"cell-probe": "geo_embed.heads.cell_probe"}
    | dict.fromkeys(("discriminant", "view-discriminant"), "geo_embed.heads.discriminant"),
    "geo_embed.heads",
    priced=True,
)
STATE_LOSSES: Registry[Any] = Registry(
    "loss of the states",
    "training.state_loss",
    dict.fromkeys(("haversine", "pigeon", "cross_entropy"), "geo_embed.heads.losses"),
    "geo_embed.losses",
)
GPS_LOSSES: Registry[Any] = Registry(
    "loss of the point",
    "training.gps_loss",
    dict.fromkeys(("mse", "mae", "smooth_l1", "haversine"), "geo_embed.heads.losses"),
    "geo_embed.losses",
)
CALIBRATIONS: Registry[Any] = Registry(
    "calibration",
    "training.calibration",
    dict.fromkeys(("none", "temperature", "vector"), "geo_embed.heads.calibration"),
    "geo_embed.calibrations",
)
REGISTRIES = (FUSIONS, HEADS, STATE_LOSSES, GPS_LOSSES, CALIBRATIONS)
