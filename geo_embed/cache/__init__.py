"""The embedding store: `open_store`, `read_store`, `find_store`, and looking after it."""
