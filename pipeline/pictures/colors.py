"""Colours that mean something other than a class: chosen far from each other and from the colours of all known classes.

tests/test_panels.py measures the distances.
"""

# Of the cells of a data set, on the page and in MLflow.
COLORS = ("#197d4b", "#d76932", "#6982eb", "#69415a", "#af4bff", "#554b19", "#d26491", "#a5822d")
RIGHT = (205, 210, 180)
WRONG = (230, 50, 190)
