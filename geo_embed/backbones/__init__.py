"""Image towers: find, load, freeze, save, fingerprint."""
