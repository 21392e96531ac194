"""The registry of baselines: what each scores, what each needs, and attention against an unfused layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise, patchify
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.baselines.baselines import BASELINES, BaselineSources, class_attention, make_baseline
from patchsieve.ranker.baselines.density_peaks import density_peaks
from patchsieve.ranker.baselines.features import even_order, gradient_energy, pixel_variance
from patchsieve.ranker.baselines.fits import FITS, BaselineFits
from patchsieve.ranker.baselines.leverage import RIDGE
from patchsieve.ranker.batches.index import index_tables
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.model.checkpoint import load_ranker, save_ranker
from tests.helpers.photos import photo_pixels
from tests.helpers.pixel_tables import GRID, PATCH, write_pixel_table
from tests.helpers.rankers import TEACHER, small_ranker
from tests.helpers.teachers import SMALL, random_teacher


def photo(seed: int, config: Any = SMALL) -> Tensor:
    """Patches of a picture as a teacher of this configuration sees them, uint8 `[L, P]`."""
    side = config.image_size
    pixels = torch.from_numpy(photo_pixels(seed, side, side)).permute(2, 0, 1)
    return patchify(pixels[None], config.patch_size)[0]


def sources(**changes: Any) -> BaselineSources:
    count = SMALL.positions
    about = {"grid": SMALL.grid, "patch_size": SMALL.patch_size, "position": list(range(count))}
    ridge = {**about, "features": dict.fromkeys(_FEATURES, 1.0)}
    given: dict[str, Any] = {"fits": {"position": about, "ridge": ridge}, "teacher": random_teacher(SMALL)}
    given |= {"grid": SMALL.grid, "patch_size": SMALL.patch_size, **changes}
    return BaselineSources(**given)


_FEATURES = (
    *("variance", "log_variance", "gradient", "log_gradient"),
    *("luminance", "squared_luminance", "contrast"),
)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_scores_every_patch_and_repeats_itself(name: str) -> None:
    patches = photo(1)
    before = patches.clone()
    scores = make_baseline(name, sources())(patches, "a")
    assert scores.shape == (SMALL.positions,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert torch.equal(patches, before)
    np.testing.assert_array_equal(make_baseline(name, sources())(patches, "a"), scores)


@pytest.mark.parametrize("name", list(BASELINES))
def test_only_what_looks_at_pixels_depends_on_them(name: str) -> None:
    baseline = make_baseline(name, sources())
    same = (baseline(photo(1), "a") == baseline(photo(2), "a")).all()
    assert same == (name in {"random", "grid", "centre", "position"})
    assert (baseline(photo(1), "a") == baseline(photo(1), "b")).all() == (name != "random")


def test_the_registry_is_what_is_documented() -> None:
    names = "random grid variance gradient edge centre position ridge attention cluster leverage"
    assert list(BASELINES) == names.split()


PINNED_RANDOM = [0.08269292086, 0.87806893585, 0.97300318486]


def test_random_depends_on_key_and_seed_and_is_pinned() -> None:
    first = make_baseline("random", sources())(photo(1), "key")
    assert (make_baseline("random", sources(seed=1))(photo(1), "key") != first).any()
    assert first[:3].tolist() == pytest.approx(PINNED_RANDOM, abs=1e-6)


def test_pixel_and_place_baselines_are_their_features() -> None:
    patches = photo(3)

    def scores(name: str) -> np.ndarray:
        return make_baseline(name, sources())(patches, "")

    np.testing.assert_array_equal(scores("variance"), pixel_variance(patches).float().numpy())
    np.testing.assert_array_equal(scores("gradient"), gradient_energy(patches).float().numpy())
    np.testing.assert_array_equal(scores("cluster"), density_peaks(patches).score.astype(np.float32))
    assert np.argsort(-scores("grid")).tolist() == even_order(SMALL.grid).tolist()
    assert sorted(np.argsort(-scores("centre"), kind="stable")[:4].tolist()) == [14, 15, 20, 21]
    assert scores("position").tolist() == list(range(SMALL.positions))


def test_attention_is_that_of_the_unfused_layer() -> None:
    teacher, patches = random_teacher(SMALL), torch.stack([photo(1), photo(2)])
    found = class_attention(teacher, patches)
    attention: Any = teacher.blocks[-1].attn
    assert not attention._forward_pre_hooks
    attention.fused_attn = False
    seen: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        teacher.encode(normalise(patches), torch.arange(SMALL.positions).expand(2, -1))
    expected = seen[0].mean(1)[:, 0, 1:]
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (found.sum(1) < 1).all()


def test_fits_come_back_from_a_ranker_s_folder(tmp_path: Path) -> None:
    table = write_pixel_table(tmp_path / "scores" / "a.parquet", images=range(12))
    sums = BaselineFits(grid=GRID, patch_size=PATCH)
    index = index_tables(ScoreTables(table), context="visible")
    with TableBatches(index, batch_size=8, seed=0).stream(epochs=1) as stream:
        for batch in stream:
            sums.add(batch)
    fits = sums.result()
    ranker = small_ranker(image_size=GRID * 16)
    teacher = {**TEACHER, "grid": GRID}
    folder = str(tmp_path / "ranker")
    save_ranker(folder, ranker, teacher=teacher, tables=["t"], temperature=1.0, extra={FITS: fits})
    read = load_ranker(folder, device="cpu").extra[FITS]
    assert read == fits
    patches = patchify(torch.from_numpy(photo_pixels(1, 32, 32)).permute(2, 0, 1)[None], PATCH)[0]
    for name in ("position", "ridge"):
        one, other = (BaselineSources(grid=GRID, patch_size=PATCH, fits=given) for given in (fits, read))
        scores = make_baseline(name, one)(patches, "")
        assert len(set(scores.tolist())) > 1
        np.testing.assert_array_equal(make_baseline(name, other)(patches, ""), scores)


def refusal(name: str, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        make_baseline(name, sources(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_is_named() -> None:
    assert "no baseline 'best', only random, grid" in refusal("best")
    assert "--from" in refusal("position", fits={})
    assert "--from" in refusal("ridge", fits={"position": {}})
    assert "--teacher" in refusal("attention", teacher=None)


def test_what_is_of_another_grid_is_refused() -> None:
    assert "6 x 6 patches of 8 px" in refusal("attention", teacher=random_teacher(SMALL), grid=4)
    whole = sources().fits
    assert "fitted to 6 x 6" in refusal("position", fits=whole, grid=4)
    with pytest.raises(ValueError, match="variance takes uint8 patches"):
        make_baseline("variance", sources())(photo(1)[:5], "")
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        make_baseline("centre", sources())(photo(1).float(), "")


@pytest.mark.parametrize(
    "change",
    [
        {"position": [1.0, 2.0]},
        {"position": [float("nan")] * 36},
        {"position": None},
        {"grid": None},
        {"features": {"variance": 1.0}},
        {"features": 3},
    ],
)
def test_damaged_fits_are_refused(change: dict[str, Any]) -> None:
    ridge = {**sources().fits["ridge"], **change}
    assert "baseline" in refusal("ridge", fits={"ridge": ridge})
    del ridge["position"]
    assert "baseline" in refusal("ridge", fits={"ridge": ridge})


def test_leverage_is_that_of_a_ridge_regression_on_the_features_and_finds_what_is_odd() -> None:
    teacher, odd = random_teacher(SMALL), 14
    patches = photo(1)[:1].expand(SMALL.positions, -1).clone()
    patches[odd] = 255 - patches[odd]
    found = make_baseline("leverage", sources())(patches, "")
    assert int(found.argmax()) == odd
    with torch.no_grad():
        places = torch.arange(SMALL.positions)[None]
        features = teacher.encode(normalise(patches[None]), places)[0, 1:].double().numpy()
    centred = features - features.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    ridge = RIDGE * (values**2).mean()
    np.testing.assert_allclose(found, (left**2 * (values**2 / (values**2 + ridge))).sum(1), atol=1e-5)
