"""The `patchsieve` command: finds the job and hands over the rest of the command line."""

from __future__ import annotations

import importlib
import sys

from patchsieve import __version__
from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.shown import say, say_page

COMMANDS = {
    "pack": "pack a folder of photos, with sub folders as labels, into shards",
    "score": "score the patches of images in shards into a Parquet table",
    "train": "fit a ranker to the pseudo-scores of tables",
    "evaluate": "measure a ranker against the teacher's own scores",
    "prove": "measure what kept patches are worth to a model, beside controls of the same cost",
    "prune": "write smaller shards with the patches that a ranker puts first",
    "report": "write one page of HTML about tables, rankers, pruned datasets and proofs",
    "sheet": "draw photos with their scores and the patches that stay",
    "schedule": "have new corpora scored: one tick, or ticks at the times of a cron expression",
    "status": "say what of an output folder is done, missing or failed",
    "verify": "hold an output against what was recorded of it, bytes and scores",
    "pretrain": "pretrain a small masked autoencoder as a teacher",
    "demo": "score real photographs with the bundled teacher and draw what it found",
}


def main() -> None:
    """Run the job that the first word of the command line names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-V", "--version"):
        import platform
        from importlib.metadata import version

        found = [f"{name} {version(name)}" for name in ("torch", "timm", "ray")]
        say(", ".join([f"patchsieve {__version__}", f"Python {platform.python_version()}", *found]))
    elif command == "--completion":
        from patchsieve.jobs.commands import completion

        say_page(completion())
    elif command in COMMANDS:
        importlib.import_module(f"patchsieve.jobs.{command}").main(sys.argv[2:])
    elif command in ("-h", "--help"):
        say_page(
            [
                "usage: patchsieve COMMAND [OPTIONS]    (patchsieve COMMAND --help lists the options)",
                "",
                *(f"  {name:10} {what}" for name, what in COMMANDS.items()),
                "",
                "--version tells versions; --completion prints a script that completes options in bash and zsh.",
            ]
        )
    else:
        known = f"; known are {', '.join(COMMANDS)}{meant(command, COMMANDS)}"
        say(f"patchsieve: unknown command {command!r}{known}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
