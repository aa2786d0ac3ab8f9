"""The commands: `main` runs one."""

from geo_embed.cli.app import main

__all__ = ["main"]
