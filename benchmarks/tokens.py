"""The frozen estimator with one K for all removals, against K chosen by what the proxies foretell.

With token t drawn with probability q_t and changes in proportion to their proxies p_t but for independent relative
noise, the relative variance of an estimate goes with sum p_t^2 (1 / q_t - 1) / (sum p_t)^2. *View*: K is the smallest
for which the mean of that over a view's removals falls below a threshold; *removal*: for each removal its own. The
threshold makes the mean of K equal to the fixed one. Kendall's tau with exact scores within a view, on exact changes:
none of the staleness that lengths of its own would cost.

    python -m benchmarks.tokens photos/held-out-*.tar
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks._common import show, write_json
from benchmarks._held_out import held_out_images
from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import hidden_positions, normalise, visible_count
from patchsieve.pipeline.scoring.frozen import FrozenEstimator, draw_tokens
from patchsieve.pipeline.scoring.removals import TokenRemovals
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.pipeline.teacher.ready import prepare_teacher
from patchsieve.ranker.evaluate.partitions import mean_of
from patchsieve.ranker.learning.agreement import kendall_tau
from patchsieve.ranker.model.ranker import RankerConfig

CHOICES = tuple(range(4, 121, 2))
STEPS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How many tokens the frozen estimator should take, and for which removal."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Shards of photos that the teacher was not trained on."""
    teacher: str = "tiny"
    """Teacher with trained weights."""
    photos: int = 16
    """Photos; one partition of spread masks of each."""
    means: tuple[int, ...] = (8, 16, 30, 60)
    """Tokens per removal, on average."""
    out: Path = Path("bench-out/tokens.json")
    """Results as JSON."""


@torch.inference_mode()
def changes_and_proxies(options: Options) -> tuple[Tensor, Tensor]:
    """Exact change of every hidden token at every removal, and its proxy: float32 `[N, V, H]` both."""
    images = held_out_images(options.shards, RankerConfig())
    model = prepare_teacher(build_teacher(read_teacher(options.teacher)), "fp32", torch.device("cpu"))
    grid = model.config.grid
    count = visible_count(grid**2, 0.9)
    estimator = FrozenEstimator(model, count, grid**2 - count, "l1")
    removals = TokenRemovals(model, count)
    changes, proxies = [], []
    for key, patches in list(zip(images.keys, images.patches, strict=True))[: options.photos]:
        drawn = [
            draw_visible(0, key, view, grid=grid, count=count, masks="spread", partition=True)
            for view in range(-(-(grid**2) // count))
        ]
        visible = torch.from_numpy(np.stack(drawn)).long()
        hidden = hidden_positions(visible, grid**2)
        shown = normalise(patches[visible])
        latent = model.encode(shown, visible)
        anchor = estimator.anchor(latent, visible, hidden)
        without = removals.of(latent, shown, visible, hidden)(torch.arange(count))
        changes.append((without - anchor.prediction[:, None]).abs().mean(-1))
        proxies.append(anchor.proxy)
    return torch.cat(changes), torch.cat(proxies)


def estimate(change: Tensor, proxy: Tensor, starts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores from `count` tokens, and the relative variance that the proxies foretell, `[N, V]` both."""
    chosen, weight, _ = draw_tokens(proxy, starts, count)
    scores = (change.gather(-1, chosen) * weight).sum(-1) / change.shape[-1]
    # Of the drawn tokens alone, each for those that were as likely.
    drawn = proxy.gather(-1, chosen)
    variance = (drawn.square() * weight * (weight - 1)).sum(-1) / proxy.sum(-1).square()
    return scores, variance


def choose(variance_NVK: Tensor, mean: int) -> Tensor:
    """Places among `CHOICES`, `[N, V]`: the first below one threshold, which makes the mean of K equal to `mean`."""
    tokens = torch.tensor(CHOICES, dtype=torch.float64)
    low, high = -40.0, 20.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        places = (variance_NVK > np.exp(middle)).sum(-1).clamp(max=len(CHOICES) - 1)
        low, high = (middle, high) if tokens[places].mean() > mean else (low, middle)
    return (variance_NVK > np.exp(high)).sum(-1).clamp(max=len(CHOICES) - 1)


def main(options: Options) -> None:
    """Compare, print a table, write the JSON."""
    change, proxy = changes_and_proxies(options)
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(change.shape[:2], generator=generator, dtype=torch.float64)
    found = [estimate(change, proxy, starts, count) for count in CHOICES]
    scores_NVK, variance_NVK = (torch.stack(part, -1) for part in zip(*found, strict=True))
    exact = change.mean(-1).numpy()
    tokens = torch.tensor(CHOICES, dtype=torch.float64)
    ways = {"view": variance_NVK.mean(1, keepdim=True).expand_as(variance_NVK), "removal": variance_NVK}
    results: dict[str, dict[str, float]] = {}
    for mean in options.means:
        fixed = scores_NVK[..., CHOICES.index(mean)]
        row = {"fixed": mean_of(kendall_tau(fixed.numpy(), exact))}
        for name, variance in ways.items():
            places = choose(variance, mean)
            scores = scores_NVK.gather(-1, places[..., None])[..., 0]
            row |= {
                name: mean_of(kendall_tau(scores.numpy(), exact)),
                f"{name}, K from": float(tokens[places].quantile(0.05)),
                f"{name}, K to": float(tokens[places].quantile(0.95)),
            }
        results[str(mean)] = row
    show(
        f"tau with exact scores, {options.teacher}, {len(change)} views of {options.photos} photos",
        ["mean K", "fixed", *(head for name in ways for head in (f"by {name}", "K, 5 % to 95 %"))],
        [
            [
                mean,
                f"{row['fixed']:.4f}",
                *(
                    cell
                    for name in ways
                    for cell in (
                        f"{row[name]:.4f}",
                        f"{row[f'{name}, K from']:.0f}-{row[f'{name}, K to']:.0f}",
                    )
                ),
            ]
            for mean, row in results.items()
        ],
    )
    write_json({"tokens": results, "photos": options.photos, "views": len(change)}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
