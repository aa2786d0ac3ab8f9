"""The demo's small country: `write_country`, `write_backbone`, `demo`."""

from geo_embed.synthetic.country import write_backbone, write_country

__all__ = ["write_backbone", "write_country"]
