"""The evidence behind the tables in one file: write it, sign it, and check it without a project."""
