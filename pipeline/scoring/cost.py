"""What scoring a view costs: in arithmetic, whatever runs it, and in memory."""

from __future__ import annotations

from patchsieve.pipeline.row_config import FrozenTokens, Removal
from patchsieve.pipeline.teacher.architecture import TeacherConfig


def gflop_per_view(
    config: TeacherConfig, visible: int, removal: Removal, frozen_tokens: FrozenTokens | None = None
) -> float:
    """Nominal cost of a view in 10^9 operations: two per multiply-add of linear layers and attention.

    `frozen_tokens`: hidden tokens that the frozen estimator computes anew for each removal (see `frozen.py`), None for
    exact scores. Nothing is taken off for work that is shared or left out in the first and the last layer.
    """
    width, hidden = config.decoder_width, config.positions - visible

    def blocks(tokens: int, keys: int, width: int, depth: int) -> float:
        return depth * (tokens * width**2 * (4 + 2 * config.mlp_ratio) + 2 * tokens * keys * width)

    def encoder(patches: int) -> float:
        ends = patches * config.patch_values * config.width
        return ends + blocks(1 + patches, 1 + patches, config.width, config.depth)

    def decoder(latents: int, tokens: int, keys: int, read: int) -> float:
        ends = (latents * config.width + read * config.patch_values) * width
        return ends + blocks(tokens, keys, width, config.decoder_depth)

    anchor = encoder(visible) + decoder(1 + visible, 1 + config.positions, 1 + config.positions, hidden)
    if frozen_tokens is not None:
        # How far each removal reaches: attention as a matrix, distances of values, and what tokens pass on.
        tokens = 1 + config.positions
        anchor += config.decoder_depth * tokens * (tokens * width + visible * width + tokens * visible)
        fresh = hidden if frozen_tokens == "all" else frozen_tokens
        one = decoder(0, visible + fresh, config.positions, fresh)
    elif removal == "decoder":
        one = decoder(visible, config.positions, config.positions, hidden)
    else:
        one = encoder(visible - 1) + decoder(visible, 1 + config.positions, 1 + config.positions, hidden)
    return 2e-9 * (anchor + visible * one)


def sequence_bytes(config: TeacherConfig, visible: int) -> int:
    """A bound on the bytes that one removal's activations take in float32, for either removal and any metric.

    Counted are the live tensors of a block at its widest point (input, norm, the perceptron's two hidden
    layers or queries, keys, values and output) and six of the size of the whole image for the metric.
    """
    wide = 4 + 2 * max(config.mlp_ratio, 2.0)
    encoder = (1 + visible) * config.width * wide
    decoder = (1 + config.positions) * config.decoder_width * wide
    image = config.positions * config.patch_values
    return int(4 * (max(encoder, decoder) + 6 * image))


def sequence_values(config: TeacherConfig) -> int:
    """Values of the largest tensor that one removal has a part in: what the perceptron makes of it, or an image."""
    ratio = max(config.mlp_ratio, 3.0)  # queries, keys and values together are three widths
    widest = max(config.width, config.decoder_width) * ratio
    return int(max((1 + config.positions) * widest, config.positions * config.patch_values))
