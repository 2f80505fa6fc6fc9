"""`python -m pipeline` is `grid`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
