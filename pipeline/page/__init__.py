"""The page of results: read (inputs), judged (reference), drawn (plots, pictures) and laid out (sections, layout)."""
