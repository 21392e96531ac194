"""`python -m patchsieve COMMAND ...` is the `patchsieve` command."""

from __future__ import annotations

from patchsieve.jobs.cli import main

if __name__ == "__main__":
    main()
