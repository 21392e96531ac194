"""Scores against an independent slow reference, and what must not change them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from patchrank.pipeline import scoring
from patchrank.pipeline.config import Metric, Removal
from patchrank.pipeline.errors import InfrastructureError, UserError
from patchrank.pipeline.patches import draw_visible, normalise, patchify, visible_count
from patchrank.pipeline.scoring import Scorer, gflop_per_view, reconstruct
from patchrank.pipeline.teacher.model import MaskedAutoencoder, TeacherConfig
from tests.helpers.photos import photo_pixels
from tests.reference import Reference

SMALL = TeacherConfig(
    image_size=28,
    patch_size=4,
    width=32,
    depth=2,
    heads=4,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=3,
    output_space="pixels",
)
RATIO = 0.85  # 7 of the 49 patches of SMALL stay visible
REMOVALS: list[Removal] = ["decoder", "encoder"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by a second thread, and much where other work has the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_teacher(config: TeacherConfig = SMALL, kind: type[MaskedAutoencoder] = MaskedAutoencoder) -> Any:
    """Random weights, wide enough that every bias and norm matters and that patches influence each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(noise, alpha=0.2)
        else:
            parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5 if parameter.ndim != 3 else 0.5))
    return model


def make_views(config: TeacherConfig, count: int, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, their patches and visible positions."""
    size = config.image_size
    images = torch.stack([torch.from_numpy(photo_pixels(seed, size, size)) for seed in range(count)])
    images = images.permute(0, 3, 1, 2).contiguous()
    masks = [
        draw_visible(0, f"{i}", 0, grid=config.grid, count=visible, masks="uniform", partition=False)
        for i in range(count)
    ]
    return (
        images,
        patchify(images, config.patch_size),
        torch.stack([torch.from_numpy(mask) for mask in masks]),
    )


def reference_scores(
    model: MaskedAutoencoder, images: Tensor, visible: Tensor, *, removal: str, metric: str
) -> Tensor:
    config = model.config
    reference = Reference(
        model.state_dict(),
        patch_size=config.patch_size,
        heads=config.heads,
        decoder_heads=config.decoder_heads,
        norm_eps=config.norm_eps,
        output_space=config.output_space,
    )
    rows = [
        reference.scores(image, row.tolist(), removal=removal, metric=metric)
        for image, row in zip(images, visible, strict=True)
    ]
    return torch.tensor(rows)


SHAPES = {
    "2 x 2": (TeacherConfig(image_size=8, patch_size=4, width=16, depth=1, heads=1), 0.5),
    "3 x 3, 5 px": (TeacherConfig(image_size=15, patch_size=5, width=16, depth=2, heads=2), 0.6),
    "5 x 5, 14 px": (TeacherConfig(image_size=70, patch_size=14, width=24, depth=1, heads=3), 0.75),
    "7 x 7, wide perceptron": (TeacherConfig(image_size=28, patch_size=4, width=16, depth=1, heads=4), 0.85),
    "14 x 14, 2 px": (TeacherConfig(image_size=28, patch_size=2, width=16, depth=1, heads=2), 0.97),
    "14 x 14, 16 px": (TeacherConfig(image_size=224, patch_size=16, width=16, depth=1, heads=2), 0.98),
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_the_slow_reference(shape: str, removal: Removal) -> None:
    base, ratio = SHAPES[shape]
    config = TeacherConfig(
        **{
            **base.__dict__,
            "decoder_width": 24,
            "decoder_depth": 2,
            "decoder_heads": 3,
            "mlp_ratio": 5.0 if "perceptron" in shape else 4.0,
        }
    )
    model = make_teacher(config)
    images, pixels, visible = make_views(config, 2, visible_count(config.positions, ratio))
    expected = reference_scores(model, images, visible, removal=removal, metric="l1")
    scores = Scorer(model, mask_ratio=ratio, removal=removal, batch_size=2).score(pixels, visible)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("space", ["pixels", "normalised"])
@pytest.mark.parametrize("metric", ["l2", "ssim", "psnr"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_other_metrics_equal_the_slow_reference(removal: Removal, metric: Metric, space: Any) -> None:
    config = TeacherConfig(**{**SMALL.__dict__, "output_space": space})
    model = make_teacher(config)
    images, pixels, visible = make_views(config, 2, 7)
    expected = reference_scores(model, images, visible, removal=removal, metric=metric)
    scorer = Scorer(model, mask_ratio=RATIO, removal=removal, metric=metric, batch_size=2)
    torch.testing.assert_close(scorer.score(pixels, visible), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("metric", ["l1", "l2", "ssim", "psnr"])
def test_more_change_scores_higher(metric: Metric) -> None:
    """A teacher whose decoder ignores all but one patch: that patch alone matters, whatever the metric."""
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    by_l1 = Scorer(model, mask_ratio=RATIO, batch_size=2).score(pixels, visible)
    scores = Scorer(model, mask_ratio=RATIO, metric=metric, batch_size=2).score(pixels, visible)
    assert torch.equal(scores.argmax(1), by_l1.argmax(1))
    assert torch.equal(scores.argmin(1), by_l1.argmin(1))


def test_scoring_leaves_the_model_alone() -> None:
    model = make_teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, pixels, visible = make_views(SMALL, 2, 7)
    Scorer(model, mask_ratio=RATIO, precision="bf16", batch_size=2).score(pixels, visible)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )


class Watched(MaskedAutoencoder):
    """A teacher that notes the predictions it gives."""

    predictions: list[Tensor]

    def decode(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, read: int) -> Tensor:
        result = super().decode(latent, visible_NV, hidden_NH, read)
        Watched.predictions.append(result.clone())
        return result


@pytest.fixture
def predictions() -> Iterator[list[Tensor]]:
    Watched.predictions = []
    yield Watched.predictions
    Watched.predictions = []


def test_exact_removal_does_not_see_the_removed_patch(predictions: list[Tensor]) -> None:
    """Bit for bit: whatever the pixels of patch r are, `f(all \\ r)` is the same."""
    model = make_teacher(kind=Watched)
    _, pixels, visible = make_views(SMALL, 1, 7)
    scorer = Scorer(model, mask_ratio=RATIO, removal="encoder", batch_size=1)
    scorer.score(pixels, visible)
    _, before = (tensor.clone() for tensor in predictions)
    for r in range(7):
        changed = pixels.clone()
        changed[0, int(visible[0, r])] = 255 - changed[0, int(visible[0, r])]
        predictions.clear()
        scorer.score(changed, visible)
        same = [torch.equal(a, b) for a, b in zip(before, predictions[1], strict=True)]
        assert same == [place == r for place in range(7)]


def test_decoder_removal_has_already_seen_the_removed_patch(predictions: list[Tensor]) -> None:
    model = make_teacher(kind=Watched)
    _, pixels, visible = make_views(SMALL, 1, 7)
    scorer = Scorer(model, mask_ratio=RATIO, removal="decoder", batch_size=1)
    scorer.score(pixels, visible)
    before = predictions[1].clone()
    changed = pixels.clone()
    changed[0, int(visible[0, 0])] = 255 - changed[0, int(visible[0, 0])]
    predictions.clear()
    scorer.score(changed, visible)
    assert not torch.equal(before[0], predictions[1][0])


def test_pixels_of_hidden_patches_do_not_matter() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(model, mask_ratio=RATIO, batch_size=2)
    changed = torch.zeros_like(pixels)
    for row in range(2):
        changed[row, visible[row].long()] = pixels[row, visible[row].long()]
    assert torch.equal(scorer.score(changed, visible), scorer.score(pixels, visible))


@pytest.mark.parametrize("metric", ["l1", "ssim"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_scores_of_a_view_do_not_depend_on_how_many_there_are(
    removal: Removal, precision: Any, metric: Metric
) -> None:
    """Bit for bit, at one batch size: the last batch is padded."""
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 7, 7)
    scorer = Scorer(
        model, mask_ratio=RATIO, removal=removal, precision=precision, metric=metric, batch_size=3
    )
    together = scorer.score(pixels, visible)
    assert together.shape == (7, 7)
    for count in (1, 2, 3, 4, 6):
        assert torch.equal(scorer.score(pixels[:count], visible[:count]), together[:count])
    assert scorer.score(pixels[:0], visible[:0]).shape == (0, 7)


@pytest.mark.parametrize("removal", REMOVALS)
def test_batch_size_and_chunks_change_rounding_only(
    removal: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 5, 7)
    expected = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=1).score(pixels, visible)
    for batch_size in (2, 4, 8):
        scores = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=batch_size).score(
            pixels, visible
        )
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)
    for removals_per_pass in (1, 3, 10):
        # The memory of a small machine.
        monkeypatch.setattr(scoring, "sequence_bytes", lambda *_: 1)
        monkeypatch.setattr(scoring, "available_memory", lambda n=removals_per_pass: n)
        scores = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=4).score(pixels, visible)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


def test_views_may_list_their_patches_in_any_order() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(model, mask_ratio=RATIO, batch_size=2)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    torch.testing.assert_close(
        scorer.score(pixels, visible[:, order]), scorer.score(pixels, visible)[:, order], rtol=1e-5, atol=0
    )


class Cramped(MaskedAutoencoder):
    """A teacher on a device whose memory holds only so many sequences."""

    room = 1_000_000
    sizes: list[int]
    message = "CUDA out of memory"
    error: type[Exception] = torch.OutOfMemoryError

    def decode(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, read: int) -> Tensor:
        if len(latent) > Cramped.room:
            raise Cramped.error(Cramped.message)
        Cramped.sizes.append(len(latent))
        return super().decode(latent, visible_NV, hidden_NH, read)


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> type[Cramped]:
    monkeypatch.setattr(Cramped, "sizes", [], raising=False)
    monkeypatch.setattr(Cramped, "room", Cramped.room)
    monkeypatch.setattr(Cramped, "message", Cramped.message)
    monkeypatch.setattr(Cramped, "error", Cramped.error)
    return Cramped


@pytest.mark.parametrize("room", [1, 2, 6, 7, 20])
@pytest.mark.parametrize("removal", REMOVALS)
def test_out_of_memory_halves_the_pass(cramped: type[Cramped], removal: Removal, room: int) -> None:
    _, pixels, visible = make_views(SMALL, 5, 7)
    expected = Scorer(make_teacher(), mask_ratio=RATIO, removal=removal, batch_size=4).score(pixels, visible)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, removal=removal, batch_size=4)
    cramped.room = room
    torch.testing.assert_close(scorer.score(pixels, visible), expected, rtol=1e-5, atol=0)
    assert max(cramped.sizes) <= room
    assert scorer.batch_size == 4


def test_out_of_memory_messages_of_processors_count(cramped: type[Cramped]) -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, batch_size=2)
    cramped.room, cramped.error = 7, RuntimeError
    cramped.message = (
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert scorer.score(pixels, visible).isfinite().all()
    cramped.room, cramped.message = 3, "shape mismatch"
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scorer.score(pixels, visible)


def test_no_room_for_one_removal_is_an_infrastructure_error(cramped: type[Cramped]) -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, batch_size=2)
    cramped.room = 0
    with pytest.raises(InfrastructureError, match="not even one removal"):
        scorer.score(pixels, visible)


def test_measured_batch_size_stays_within_memory(cramped: type[Cramped]) -> None:
    cramped.room = 21
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO)
    assert scorer.batch_size in {1, 2}
    cramped.room = 3
    assert Scorer(make_teacher(kind=cramped), mask_ratio=RATIO).batch_size == 1


def test_anchor_is_the_reconstruction() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    prediction, hidden = reconstruct(model, pixels, visible)
    assert prediction.shape == (2, 42, 48)
    assert not set(hidden[0].tolist()) & set(visible[0].tolist())
    places = visible.long()
    patches = normalise(torch.stack([pixels[row, places[row]] for row in range(2)]))
    expected = model.decode(model.encode(patches, places), places, hidden, 42)
    assert torch.equal(prediction, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.98}, "mask ratio 0.98 leaves 0 of 49"),
        ({"mask_ratio": 0.97}, "leaves 1 of 49"),
        ({"mask_ratio": 0.0}, "leaves 49 of 49"),
        ({"metric": "l3"}, "'l3' is none of"),
        ({"removal": "both"}, "'both' is none of"),
        ({"precision": "fp8"}, "'fp8' is none of"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(make_teacher(), **{"mask_ratio": RATIO, "batch_size": 1, **changes})


@pytest.mark.parametrize("metric", ["ssim", "psnr"])
def test_pixel_metrics_need_a_known_output_space(metric: Metric) -> None:
    model = make_teacher(TeacherConfig(**{**SMALL.__dict__, "output_space": "unknown"}))
    Scorer(model, mask_ratio=RATIO, batch_size=1)
    with pytest.raises(UserError, match="does not tell its output space"):
        Scorer(model, mask_ratio=RATIO, metric=metric, batch_size=1)


def test_arguments_that_do_not_fit_the_teacher_are_refused() -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, batch_size=1)
    _, pixels, visible = make_views(SMALL, 2, 7)
    with pytest.raises(ValueError, match="are not uint8"):
        scorer.score(pixels.float(), visible)
    with pytest.raises(ValueError, match="are not uint8"):
        scorer.score(pixels[:, :48], visible)
    with pytest.raises(ValueError, match="is not"):
        scorer.score(pixels, visible[:, :6])


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = make_teacher()
    model.decoder_norm.weight[3] = float("nan")
    _, pixels, visible = make_views(SMALL, 1, 7)
    with pytest.raises(UserError, match="not finite in fp32"):
        Scorer(model, mask_ratio=RATIO, batch_size=1).score(pixels, visible)


def test_nominal_cost() -> None:
    base = TeacherConfig()
    # The blocks of the twenty decoder passes alone: 196 tokens, eight blocks 512 wide.
    decoders = 20 * 2 * 8 * (196 * 12 * 512**2 + 2 * 196**2 * 512) / 1e9
    assert decoders == pytest.approx(209.9, abs=0.1)
    assert gflop_per_view(base, 19, "decoder") == pytest.approx(216.5, abs=0.1)
    # Exact removal pays for the encoder once more per removal.
    encoder = 2 * (12 * (19 * 12 * 768**2 + 2 * 19**2 * 768) + 18 * 768 * 768) / 1e9
    gain = gflop_per_view(base, 19, "encoder") - gflop_per_view(base, 19, "decoder")
    assert gain == pytest.approx(19 * encoder, rel=0.03)
