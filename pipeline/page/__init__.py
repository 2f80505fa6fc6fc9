"""The page of results: one HTML file without a server."""
