"""What every command does around its work: how it logs, and what becomes of an error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler


def run(main: Callable[[], object]) -> None:
    """Run a command: our own errors and the system's become one line on stderr and exit code 2, Ctrl-C exit code 130."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", datefmt="[%X]", handlers=[_handler()], force=True)
    logging.getLogger("tfmammo").setLevel(logging.INFO)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("tfmammo"):
            raise  # a fault of ours, which its traceback explains
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _handler() -> logging.Handler:
    error_console = Console(stderr=True)
    if error_console.is_terminal:
        return RichHandler(console=error_console, show_path=False, show_level=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler
