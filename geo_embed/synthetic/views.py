"""The directions in which the demo's camera looks."""

from typing import Final

# A new one goes to the end, so that the pictures of the others stay as they are.
VIEWS: Final = {"north": 0, "east": 90, "south": 180, "west": 270}
"""Degrees east of north, by the view's name in columns and files."""
