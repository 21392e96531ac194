"""`patchrank demo`: photographs into shards, shards into scores, scores into a picture."""

from __future__ import annotations

from collections.abc import Sequence

from patchrank.jobs.command_line import run_job
from patchrank.pipeline.config_file import config_to_yaml
from patchrank.pipeline.job_config import DemoConfig, ScoreConfig


def run(config: DemoConfig) -> int:
    """Pack, score, draw; returns the exit code of the scoring."""
    from patchrank.pipeline import demo_sheet, storage
    from patchrank.pipeline.demo_photos import find_photos, pack_photos
    from patchrank.pipeline.output import new_run_id
    from patchrank.pipeline.progress import make_display
    from patchrank.pipeline.score_request import make_request
    from patchrank.pipeline.score_run import score

    run_id = new_run_id()
    shards, labels = storage.join(config.out, "shards"), storage.join(config.out, "labels")
    packed = pack_photos(find_photos(config.images), shards, samples=config.samples, run_id=run_id)
    print("\n".join(packed.lines()), flush=True)
    scoring = ScoreConfig(
        shards=tuple(packed.shards),
        out=labels,
        teacher=config.teacher,
        views=config.views,
        crop="center",
        masks="spread",
        max_actors=config.max_actors,
    )
    request = make_request(scoring)
    demo_sheet.check_teacher(request.teacher)
    summary = score(request, make_display(), settings=config_to_yaml(scoring))
    print("\n".join(summary.lines(labels)), flush=True)
    if summary.exit_code == 0:
        picture = storage.join(config.out, "contact-sheet.png")
        storage.commit_bytes(demo_sheet.draw(packed, labels, request.teacher), picture, run_id=run_id)
        lines = demo_sheet.closing_lines(out=config.out, picture=picture, shards=shards, labels=labels)
        print("\n".join(lines))
    return summary.exit_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_job("demo", DemoConfig, run, arguments)


if __name__ == "__main__":
    main()
