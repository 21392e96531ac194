"""Reconstructions without one visible patch, for all visible patches of a view: what every score is measured on.

With removal `decoder` the first block of the decoder sees the same tokens in every removal, less one. On processors
its norm, projections and attention to the tokens that stay are computed once per view; each removal adds what is left
of the visible ones, as the parts of a softmax are put together (Milakov and Gimelshein, "Online normalizer calculation
for softmax", arXiv 1805.02867). Nothing is subtracted, so that no digits are lost, whatever the weights.

Shape suffixes: N views, K removals of a view, L grid positions, V visible, H = L - V hidden patches, F = H + 1 tokens
that every removal keeps (hidden patches, class token), T = F + V, E decoder width, D encoder width, h heads, d = E / h,
P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from patchsieve.pipeline.compute.layers import InferenceBlock
from patchsieve.pipeline.images.patches import others_of
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

Without = Callable[[Tensor], Tensor]
"""(removed: places among the visible patches, int64 `[K]`) to the predictions of the hidden ones without each of
them, float32 `[N, K, H, P]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstBlock:
    """What the removals of a view share; float32, and the products of the block in `dtype`.

    `tokens` `[N, T, E]`: hidden patches, class token, visible patches. `peak` and `total` `[N, h, T]`: the largest
    logit of each query among the tokens that stay, and the sum of exp(logit - peak); `mixed` `[N, h, T, d]`: their
    values weighted by that. `logits` `[N, h, T, V]` and `values` `[N, h, V, d]` of the visible patches.
    """

    tokens: Tensor
    peak: Tensor
    total: Tensor
    mixed: Tensor
    logits: Tensor
    values: Tensor
    dtype: torch.dtype


class TokenRemovals:
    """Removal `decoder`: patch r is encoded with the others and its token left out afterwards, a whole pass for each.

    For GPUs: what sharing saves in products there it costs in memory traffic (1.01 times as fast without on an H100).
    """

    def __init__(self, model: MaskedAutoencoder, visible: int) -> None:
        """`model`: from `teacher.ready.prepare_teacher`; `visible`: V."""
        self._model = model
        self._others_VV = others_of(visible).to(model.cls_token.device)

    def of(self, latent: Tensor, _patches_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Without:
        """The removals of some views: `latent` `[N, 1 + V, D]` from the encoder, positions int64."""
        return partial(self._without, latent, visible_NV, hidden_NH)

    def _without(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, removed_K: Tensor) -> Tensor:
        others, hidden = self._others_VV[removed_K], hidden_NH.shape[1]
        tokens = latent[:, nn.functional.pad(others + 1, (1, 0))].flatten(0, 1)
        masked = hidden_NH[:, None].expand(-1, len(removed_K), -1).flatten(0, 1)
        predicted = self._model.decode(tokens, visible_NV[:, others].flatten(0, 1), masked, hidden)
        return predicted.float().reshape(len(visible_NV), len(removed_K), hidden, -1)


class SharedTokenRemovals:
    """The same with the decoder's first block shared as far as all removals have it in common; for processors."""

    def __init__(self, model: MaskedAutoencoder, visible: int) -> None:
        """`model`: from `teacher.ready.prepare_teacher`; `visible`: V."""
        self._model = model
        first, *self._blocks = model.decoder_blocks
        assert isinstance(first, InferenceBlock), "the model was not prepared"
        self._first = first
        self._others_VV = others_of(visible).to(model.cls_token.device)

    def of(self, latent: Tensor, _patches_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Without:
        """The removals of some views: `latent` `[N, 1 + V, D]` from the encoder, positions int64."""
        return partial(self._without, self._share(latent, visible_NV, hidden_NH))

    def _share(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> FirstBlock:
        """The first block as far as all removals have it in common."""
        tokens = self._model.decoder_tokens(latent, visible_NV, hidden_NH)
        stay = hidden_NH.shape[1] + 1
        queries, keys, values = self._first.project(tokens)
        logits = ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)).float()
        peak = logits[..., :stay].amax(-1)
        weights = (logits[..., :stay] - peak[..., None]).exp_()
        values = values.float()
        return FirstBlock(
            tokens=tokens,
            peak=peak,
            total=weights.sum(-1),
            mixed=weights @ values[:, :, :stay],
            logits=logits[..., stay:],
            values=values[:, :, stay:],
            dtype=queries.dtype,
        )

    def _without(self, shared: FirstBlock, removed_K: Tensor) -> Tensor:
        """Position r takes no part at all: neither its token nor a mask token in its place."""
        views, removals = len(shared.tokens), len(removed_K)
        stay = shared.tokens.shape[1] - shared.values.shape[2]
        tokens = shared.tokens[:, None].expand(-1, removals, -1, -1)
        tokens = self._leave_out(tokens, removed_K, stay)
        mixed = self._leave_out(self._attend(shared, removed_K), removed_K, stay)
        x = self._first.finish(tokens.flatten(0, 1), mixed.flatten(0, 1))
        predicted = self._model.finish_decoding(x, self._blocks, stay - 1)
        return predicted.float().reshape(views, removals, stay - 1, -1)

    def _attend(self, shared: FirstBlock, removed_K: Tensor) -> Tensor:
        """What attention makes of each query without each of the keys, `[N, K, T, E]`."""
        visible = shared.values.shape[2]
        gone_KV = torch.arange(visible, device=removed_K.device) == removed_K[:, None]
        logits = shared.logits[:, :, None].masked_fill(gone_KV[:, None], -torch.inf)
        peak = torch.maximum(logits.amax(-1), shared.peak[:, :, None])
        weights = logits.sub_(peak[..., None]).exp_()
        share = (shared.peak[:, :, None] - peak).exp_()
        total = (share * shared.total[:, :, None]).add_(weights.sum(-1))
        mixed = (weights.flatten(2, 3) @ shared.values).view(*share.shape, -1)
        mixed.addcmul_(share[..., None], shared.mixed[:, :, None]).div_(total[..., None])
        return mixed.to(shared.dtype).permute(0, 2, 3, 1, 4).flatten(3)

    def _leave_out(self, values_NKTE: Tensor, removed_K: Tensor, stay: int) -> Tensor:
        """Row K of a view without the token that K removes, `[N, K, T - 1, E]`."""
        views, removals, tokens, width = values_NKTE.shape
        left = values_NKTE.new_empty(views, removals, tokens - 1, width)
        left[:, :, :stay] = values_NKTE[:, :, :stay]
        rows = stay + self._others_VV[removed_K]
        left[:, :, stay:] = values_NKTE[:, torch.arange(removals, device=rows.device)[:, None], rows]
        return left


class PatchRemovals:
    """Removal `encoder`: patch r is taken away before the encoder, and its place is one more to predict."""

    def __init__(self, model: MaskedAutoencoder, visible: int) -> None:
        """`model`: from `teacher.ready.prepare_teacher`; `visible`: V."""
        self._model = model
        self._others_VV = others_of(visible).to(model.cls_token.device)

    def of(self, _latent: Tensor, patches_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Without:
        """The removals of some views: normalised pixels `[N, V, P]`, positions int64."""
        return partial(self._without, patches_NVP, visible_NV, hidden_NH)

    def _without(
        self, patches_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor, removed_K: Tensor
    ) -> Tensor:
        others = self._others_VV[removed_K]
        places = visible_NV[:, others].flatten(0, 1)
        latent = self._model.encode(patches_NVP[:, others].flatten(0, 1), places)
        # r's place comes last and is not read.
        hidden = hidden_NH[:, None].expand(-1, len(removed_K), -1)
        hidden = torch.cat([hidden, visible_NV[:, removed_K, None]], dim=2).flatten(0, 1)
        predicted = self._model.decode(latent, places, hidden, hidden_NH.shape[1])
        return predicted.float().reshape(len(visible_NV), len(removed_K), hidden_NH.shape[1], -1)
