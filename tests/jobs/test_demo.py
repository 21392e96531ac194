"""The demo: scored on real actors, drawn from the table, and drawn again without scoring."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from patchsieve.jobs import demo, evaluate
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures import demo_sheet
from patchsieve.pipeline.pictures.rows import read_samples, scored_photo
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.ranker.evaluate.config import EvaluateConfig
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.prune_on_ray import run as prune_run
from tests.helpers.demo_photos import pack, samples_of, write_photos
from tests.helpers.photos import encode, photo_pixels
from tests.helpers.score_runs import save_small_teacher, score_config, score_here


def test_without_scikit_image_one_line_says_what_to_do(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        demo.main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install scikit-image" in told
    assert "--images DIR" in told


def test_rows_of_the_sheet_come_from_the_table_alone(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.png": encode(photo_pixels(5, 90, 120), "PNG")})
    packed = pack(folder, tmp_path / "shards", samples=4)
    teacher = save_small_teacher(tmp_path)
    config = score_config(
        packed.shards, tmp_path / "labels", teacher, crop="center", masks="spread", views="12"
    )
    score_here(config)
    tables = ScoreTables(str(tmp_path / "labels"))
    samples = read_samples(tables, [part.sample_key for part in packed.photos[0].parts] + ["not there"])
    assert list(samples) == [part.sample_key for part in packed.photos[0].parts]
    whole = samples["a-whole"]
    assert whole.known.all()
    assert sorted(whole.visible.reshape(-1).tolist()) == list(range(36))
    row = scored_photo(packed.photos[0], samples, build_teacher(read_teacher(teacher)))
    assert "48 views of 4 overlapping crops" in row.caption
    assert not np.isnan(row.scores).any()
    box = whole.box
    image = samples_of(packed.shards)["a-whole"].permute(1, 2, 0).numpy()
    crop = Image.fromarray(image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]])
    expected = np.asarray(crop.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(row.view - expected).mean() < 2


def test_tables_of_random_crops_make_no_map(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.png": encode(photo_pixels(5, 90, 120), "PNG")})
    packed = pack(folder, tmp_path / "shards", samples=4)
    score_here(score_config(packed.shards, tmp_path / "labels", save_small_teacher(tmp_path), crop="random"))
    with pytest.raises(UserError, match="different crops"):
        read_samples(ScoreTables(str(tmp_path / "labels")), ["a-whole"])


def test_a_teacher_that_does_not_tell_what_it_predicts_is_refused(tmp_path) -> None:
    teacher = read_teacher(save_small_teacher(tmp_path, output_space="unknown"))
    with pytest.raises(UserError, match="cannot be drawn"):
        demo_sheet.check_drawable(teacher)


def test_too_few_samples_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--samples", "3"])
    assert ended.value.code == 2
    assert "--samples is 3" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_from_photos_to_picture_and_again(tmp_path, capsys, monkeypatch) -> None:
    photos = {
        "one.jpg": encode(photo_pixels(1)),
        "sub/two.png": encode(photo_pixels(2), "PNG"),
        "three.jpg": encode(photo_pixels(3)),
        "four.jpg": encode(photo_pixels(4)),
        "bad.jpg": b"x",
    }
    folder, out = write_photos(tmp_path / "photos", photos), tmp_path / "out"
    arguments = ["--images", str(folder), "--out", str(out), "--samples", "24", "--views", "3"]
    arguments += ["--teacher", save_small_teacher(tmp_path)]
    # A process of its own, as a user starts it: with a Ray of its own.
    ended = subprocess.run(
        [sys.executable, "-m", "patchsieve.jobs.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "packed 4 photos as 20 samples" in ended.stdout
    assert "cannot read bad.jpg" in ended.stdout
    assert "agreement with the teacher's dense scores" in ended.stdout
    assert load_ranker(str(out / "ranker")).config.depth == 2
    assert "complete: 4 of 4 shards done, 60 rows" in ended.stdout
    assert re.search(rf"^  \S+ status {out}/tables$", ended.stdout, re.MULTILINE)
    assert "patches: 360 of 720 kept, 50.0%" in ended.stdout
    assert "tokens   36 of an image before, 18 after" in ended.stdout
    # Patches of 8 px, which the model that reads them takes as well.
    assert re.search(
        r"^reading  \[8, (18|19), 192\] patches, 144 of them kept .* logits \[8, 10\]$",
        ended.stdout,
        re.MULTILINE,
    )
    assert len(list((out / "pruned" / "shards").glob("*.tar"))) == 4
    picture = (out / "contact-sheet.png").read_bytes()
    with Image.open(out / "contact-sheet.png") as image:
        assert image.width > 5 * 48
        assert image.height > 2 * 48
    rows = ScoreTables(str(out / "tables")).rows
    assert rows == 60

    # Prune measured which precision to rank in, and does not do so again.
    pruned = json.loads((out / "pruned" / "config.json").read_text())
    assert pruned["rows"]["precision"] in ("fp32", "bf16")
    monkeypatch.setattr(prune_run, "precision_on_cluster", None)

    def too_few(config: EvaluateConfig) -> int:
        raise UserError("too few were held out")

    monkeypatch.setattr(evaluate, "run", too_few)
    (out / "contact-sheet.png").unlink()
    with pytest.raises(SystemExit) as again:
        demo.main(arguments)
    assert again.value.code == 0
    told = capsys.readouterr().out
    assert "4 of 4 shards done (4 by earlier runs)" in told
    assert "not measured: too few were held out" in told
    assert (out / "contact-sheet.png").read_bytes() == picture
