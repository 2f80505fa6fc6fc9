"""Raw archives and folders become one prepared store per data set."""
