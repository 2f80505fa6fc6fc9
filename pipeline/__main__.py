"""Start the command `grid`, which is also `python -m pipeline`."""

import sys
from pathlib import Path

import click

from pipeline.cli import grid
from pipeline.errors import ParamsError, run_command


def require_own_code() -> None:
    """Raise ParamsError when the nearest copy of this code, here or above, is another one: the stages run that one."""
    own, here = Path(__file__).resolve().parent, Path.cwd()
    near = next((place for place in (here, *here.parents) if (place / "pipeline/cli.py").is_file()), own.parent)
    if near != own.parent:
        raise ParamsError(
            f"{near}: has its own code, but `grid` is that of {own.parent}. Run: PYTHONPATH={near} python -m pipeline"
        )


def start() -> None:
    """Parse the command line and run the verb; exits with the code that it returns."""
    require_own_code()
    try:
        code = grid.main(prog_name="grid", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "grid"
        message = " ".join(error.format_message().split())
        print(f"error: {message} Run: {verb} --help", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def main() -> None:
    """Run `grid`."""
    run_command(start)


if __name__ == "__main__":
    main()
