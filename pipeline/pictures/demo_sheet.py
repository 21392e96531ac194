"""The demo's contact sheet, and what the demo says at its end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures.contact_sheet import contact_sheet
from patchsieve.pipeline.pictures.demo_photos import PackedPhotos, spread
from patchsieve.pipeline.pictures.rows import read_samples, scored_photo
from patchsieve.pipeline.pictures.sheet import draw_sheet, picture_file
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile

MOST_ROWS = 8


def check_drawable(teacher: TeacherFile) -> None:
    """Raise UserError for a teacher whose reconstructions cannot be drawn."""
    if teacher.config.output_space == "unknown":
        raise UserError(
            f"{teacher.name} does not tell whether it predicts pixels, so its reconstructions cannot be drawn; "
            "patchsieve score takes it, with --output-space if the metric needs it"
        )


def draw(packed: PackedPhotos, scored: str, teacher: TeacherFile) -> bytes:
    """The contact sheet of at most MOST_ROWS photos as a PNG. `scored`: the output folder of the scores."""
    model = build_teacher(teacher)
    shown = spread(packed.photos, MOST_ROWS)
    tables = ScoreTables(scored)
    samples = read_samples(tables, [part.sample_key for photo in shown for part in photo.parts])
    rows = [scored_photo(photo, samples, model) for photo in shown if photo.parts[0].sample_key in samples]
    sheet = contact_sheet(
        rows,
        title="Which patches carry a picture's content?",
        subtitle=(
            f"Teacher {teacher.name}: a patch scores high when the reconstruction changes much without it. "
            f"{len(rows)} of {packed.found} photos, {tables.rows} views."
        ),
    )
    return picture_file(draw_sheet(sheet))


def closing_lines(*, out: str, picture: str, shards: str, tables: str, ranker: str, pruned: str) -> list[str]:
    """Where everything is, and what to try next; `out` is the demo's whole output."""
    command, other = _command(), shlex.quote(out.rstrip("/") + "-2")
    return [
        "",
        f"picture  {picture}",
        f"shards   {shards}",
        f"table    {tables}",
        f"pruned   {pruned}",
        "",
        "Look at the picture: do the scores follow the objects? Then try:",
        f"  {command} report {shlex.join([tables, ranker, pruned])} --out report.html    (look at all of it)",
        f"  {command} status {shlex.quote(tables)}",
        f"  {command} demo --images DIR --out {other}    (the same with photos of your own)",
        f"  {command} score --help    (the job itself, for shards of your own)",
        f"  import patchsieve; patchsieve.read_scores({tables!r})    (in Python: the table)",
    ]


def _command() -> str:
    """How this patchsieve is called from here: by its name where the shell finds that, else by its path."""
    if shutil.which("patchsieve"):
        return "patchsieve"
    return shlex.quote(os.path.relpath(Path(sys.executable).parent / "patchsieve"))
