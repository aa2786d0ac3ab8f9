"""What a person looks at: `outlines` of classes, and maps of them."""
