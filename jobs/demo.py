"""`patchsieve demo`: photos into shards, scores, a picture, a small ranker, and pruned shards that a model reads."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs import evaluate, prune, score, train
from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures.config import DemoConfig
from patchsieve.pipeline.score.config import ScoreConfig, parse_views
from patchsieve.pipeline.shown import say


def run(config: DemoConfig) -> int:
    """Pack, score, draw, train, measure, prune, read; returns the exit code of the first step that is not complete."""
    from patchsieve.pipeline import storage
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.pipeline.pictures import demo_sheet
    from patchsieve.pipeline.pictures.demo_photos import find_photos, pack_photos
    from patchsieve.pipeline.teacher.checkpoint import read_teacher
    from patchsieve.ranker.demo import (
        FEWEST_ROWS,
        demo_evaluation,
        demo_pruning,
        demo_training,
        reading_line,
        saved_lines,
    )

    run_id = new_run_id()
    names = ("shards", "tables", "ranker", "pruned")
    shards, tables, ranker, pruned = (storage.join(config.out, name) for name in names)
    teacher = read_teacher(config.teacher)
    demo_sheet.check_drawable(teacher)
    packed = pack_photos(find_photos(config.images), shards, samples=config.samples, run_id=run_id)
    say(*packed.lines())
    scoring = ScoreConfig(
        shards=tuple(packed.shards),
        out=tables,
        teacher=config.teacher,
        views=config.views,
        crop="center",
        masks="spread",
        max_actors=config.max_actors,
    )
    if code := score.run(scoring):
        return code
    picture = storage.join(config.out, "contact-sheet.png")
    storage.commit_bytes(demo_sheet.draw(packed, tables, teacher), picture, run_id=run_id)
    if (rows := packed.samples * parse_views(config.views)[1]) < FEWEST_ROWS:
        say("", f"{rows} views are too few to train a ranker on: {FEWEST_ROWS} are needed")
        ranker, pruned = "tiny", f"{pruned}-by-tiny"
    else:
        say("", "training a small ranker on the scores")
        if code := train.run(demo_training(tables, ranker)):
            return code
        say("", "measuring it on samples that it did not see: other crops of the same photos")
        try:
            evaluate.run(demo_evaluation(packed.shards, ranker, config.teacher))
        except UserError as error:  # too few of them were held out
            say(f"not measured: {error}")
    say("", "pruning the shards: of each photo, the half of its patches that the ranker puts first")
    pruning = demo_pruning(packed.shards, ranker, pruned, max_actors=config.max_actors)
    if code := prune.run(pruning):
        return code
    say(*saved_lines(pruning), reading_line(pruning))
    lines = demo_sheet.closing_lines(
        out=config.out, picture=picture, shards=shards, tables=tables, ranker=ranker, pruned=pruned
    )
    say(*lines)
    return 0


main = partial(run_job, "demo", DemoConfig, run)


if __name__ == "__main__":
    main()
