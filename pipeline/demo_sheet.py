"""The demo's contact sheet, and what the demo says at its end."""

from __future__ import annotations

from patchrank.pipeline.contact_sheet import contact_sheet
from patchrank.pipeline.demo_photos import PackedPhotos, spread
from patchrank.pipeline.errors import UserError
from patchrank.pipeline.picture_sheet import draw_sheet, picture_file
from patchrank.pipeline.sheet_rows import read_samples, scored_photo
from patchrank.pipeline.table_reader import ScoreTables
from patchrank.pipeline.teacher.checkpoint import TeacherFile, build_teacher

MOST_ROWS = 8


def check_teacher(teacher: TeacherFile) -> None:
    """Raise UserError for a teacher whose reconstructions cannot be drawn."""
    if teacher.config.output_space == "unknown":
        raise UserError(
            f"{teacher.name} does not tell whether it predicts pixels, so its reconstructions cannot be drawn; "
            "patchrank score takes it, with --output-space if the metric needs it"
        )


def draw(packed: PackedPhotos, labels: str, teacher: TeacherFile) -> bytes:
    """The contact sheet of at most MOST_ROWS photos as a PNG. `labels`: the output folder of the scores."""
    model = build_teacher(teacher)
    shown = spread(packed.photos, MOST_ROWS)
    tables = ScoreTables(labels)
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


def closing_lines(*, picture: str, shards: str, labels: str) -> list[str]:
    """Where everything is, and what to try next."""
    return [
        "",
        f"picture  {picture}",
        f"shards   {shards}",
        f"table    {labels}",
        "",
        "next     look at the picture: do the scores follow the objects?",
        f"         patchrank status {labels}",
        f"         python -c \"import patchrank; print(patchrank.read_scores('{labels}'))\"",
        "         patchrank demo --images DIR --out OTHER-OUT     the same with photos of your own",
        f"         patchrank score {shards} --out OTHER-OUT --teacher tiny --dry-run",
    ]
