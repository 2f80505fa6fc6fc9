"""Annotations of labelling tools: their readers, the format that draws them, and what `grid new` finds in an export."""
