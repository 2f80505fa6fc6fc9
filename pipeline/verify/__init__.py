"""Check published numbers, against the committed files and by computing them again; publish and pull their weights."""
