"""Check published numbers: against the committed files, and by computing them again."""
