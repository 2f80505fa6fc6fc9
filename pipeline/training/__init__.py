"""One training as a process, and what it leaves behind."""
