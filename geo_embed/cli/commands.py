"""What all commands have in common: flags shown without a type, and the right command said where there is none of a name."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from geo_embed.locations import local_path, located

# What people type for a command that has another name, as other tools call it; an option of `geo` itself is one, too.
_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "check": ("data check", "verify", "validate", "doctor"),
    "clean": ("gc",),
    "compute": ("extract",),
    "delete": ("rm", "gc"),
    "diagnose": ("doctor",),
    "embed": ("extract",),
    "embeddings": ("extract", "cache export"),
    "encode": ("extract",),
    "eval": ("evaluate",),
    "fit": ("fit-heads",),
    "help": ("--help",),
    "html": ("report",),
    "infer": ("predict",),
    "info": ("show", "config show", "cache info"),
    "list": ("ls", "runs ls", "cache ls"),
    "metrics": ("evaluate",),
    "new": ("init",),
    "prune": ("gc",),
    "remove": ("rm", "gc"),
    "score": ("evaluate",),
    "search": ("sweep",),
    "settings": ("config show",),
    "status": ("doctor", "cache ls", "runs ls"),
    "test": ("evaluate", "predict"),
    "train": ("fit-heads", "finetune"),
    "tune": ("sweep", "finetune"),
    "version": ("--version",),
}
# Of options and arguments, those that take a name as well as a directory.
_NAMES_OR_PATHS = frozenset({"backbone", "first", "init", "run", "runs", "second"})
# Of paths, those that may be of a bucket.
_IN_BUCKETS = frozenset({"address", "store", "written"})


class Commands(TyperGroup):
    """A group of commands; `geo` itself and each of its groups is one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # A group's example is that of its first command.
        self.epilog = self.epilog or next((subcommand.epilog for subcommand in self.commands.values()), None)
        for command in (self, *self.commands.values()):
            _show_flags_alone(command)
            _take_addresses(command)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first word names; of a word that names none, the error says which are meant."""
        if args and not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            known = suggestions(args, self, ctx.find_root().command, ctx.command_path)
            meant = f" Did you mean {' or '.join(map(repr, known))}?" if known else ""
            # An option that there is not is its parser's affair.
            if not args[0].startswith("-"):
                ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


def suggestions(words: list[str], group: TyperGroup, root: TyperGroup, path: str) -> list[str]:
    """Whole command lines, three at most, that may be meant by words of which the first names no command of a group.

    Args:
        words: what was typed.
        group: where no command has the first word's name.
        root: `geo`, whose commands may be meant as well.
        path: of the group, as `geo cache`.
    """
    typed, program = words[0].lower(), path.split()[0]
    lines_of_group = {name: f"{path} {name}" for name in group.commands}
    lines_of_program = {" ".join(names): f"{program} {' '.join(names)}" for names, _ in walk(root)}
    others = _ALSO_CALLED.get(typed, ())
    lines = [lines_of_group[name] for name in others if name in lines_of_group]
    if path == program or not lines:
        lines += [lines_of_program[name] for name in others if name in lines_of_program]
        lines += [f"{program} {name}" for name in others if name.startswith("-")]
    # `geo gc` for `cache gc`, `geo cache-ls` for `cache ls`.
    lines = lines or [
        line
        for name, line in lines_of_program.items()
        if typed in name.split() or typed == name.replace(" ", "-")
    ]
    if not lines:
        lines += [lines_of_group[name] for name in get_close_matches(typed, lines_of_group)]
        lines += [line for name, line in lines_of_group.items() if len(typed) > 1 and name.startswith(typed)]
    return list(dict.fromkeys(lines))[:3]


def walk(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be called, below a group, with the words that name it."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from walk(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


def _take_addresses(command: Any) -> None:
    """Have a command take `file://` addresses where it takes paths, and refuse other schemes by name, before it does anything."""
    invoke = command.invoke

    def checked(ctx: Any) -> Any:
        ctx.params = {name: _of_this_machine(name, value) for name, value in ctx.params.items()}
        return invoke(ctx)

    command.invoke = checked


def _of_this_machine(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_of_this_machine(name, part) for part in value)
    # What may be a name or a directory is a name, whatever its letters, unless it says that it is a path.
    is_address = name in _NAMES_OR_PATHS and isinstance(value, str) and value.lower().startswith("file://")
    if is_address:
        return str(local_path(value, where=name))
    if isinstance(value, Path):
        return (located if name in _IN_BUCKETS else local_path)(value, where=name)
    return value


def _show_flags_alone(command: Any) -> None:
    """Have a command's help show no type behind a flag: it takes no value."""
    all_parameters = command.get_params

    def parameters(ctx: Any) -> list[Any]:
        shown: list[Any] = all_parameters(ctx)
        for parameter in shown:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return shown

    command.get_params = parameters
