"""Images that people look at: overlays, panels, charts."""
