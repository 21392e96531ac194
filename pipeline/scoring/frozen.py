"""The frozen estimator: scores from a few hidden tokens, while the others stay as they were.

The decoder runs once with all visible patches and keeps the keys and values of every layer. For each removal only
the class token, the other visible tokens and K of the hidden ones are computed anew; they attend to each other and to
the kept keys and values of the remaining hidden tokens, never to the removed patch. From the change at the K tokens the
mean over all hidden patches is estimated.

Which K: every hidden token t has a proxy p_t of its change, and is drawn with probability min(1, c p_t), where c makes
the probabilities sum to K. Those that reach 1 count fully; the others are drawn by systematic sampling in the order of
their proxies, from one random number per removal (Madow, "On the theory of systematic sampling, II", 1949): exactly K
tokens, each at most once. A drawn token is weighted by the inverse of its probability (Horvitz and Thompson, 1952),
which makes the mean unbiased over the random number for any values that do not depend on it. The changes depend on it
a little, since each is computed beside the other drawn tokens.

Shape suffixes: N views, R removals of a view, L grid positions, V visible, H = L - V hidden patches, K hidden tokens
computed anew, T = 1 + L tokens of the whole decoder, P values of a patch, E decoder width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchsieve.pipeline.compute.layers import InferenceBlock
from patchsieve.pipeline.images.patches import others_of
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import Metric, RowConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

SMALLEST_SHARE = 1e-3
"""A token's proxy counts at least this share of their mean, so that any token may be drawn."""

PASSED_ON = 0.25
"""Share of the proxy of its neighbours that a token takes over in each layer: the best of 0, 0.25, 0.5, 1 and 2 on the
bundled teacher (docs/estimator.md)."""


def draw_starts(rows: RowConfig, keys: Sequence[tuple[str, int]], visible: int) -> Tensor | None:
    """The random numbers of some views, one per removal, float64 `[N, V]` in [0, 1); None for exact scores.

    `keys`: sample key and number of each view, on which its numbers depend, and on the seed.
    """
    if rows.estimator != "frozen":
        return None
    draws = [KeyedRandom(rows.seed, key, "frozen", view).uniform(visible) for key, view in keys]
    return torch.from_numpy(np.stack(draws))


def draw_tokens(proxy: Tensor, starts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens to compute anew: `(chosen, weight, rest)`, `[..., K]` twice and `[..., H - K]`.

    `proxy`: `[..., H]`, not negative; `starts`: random numbers in [0, 1), `[...]`. `chosen` and `rest` are int64 places
    among the H and together all of them; `weight` is float32, 1 / probability, 1 for tokens that are always taken.
    """
    hidden = proxy.shape[-1]
    if count == hidden:
        everyone = torch.arange(hidden, device=proxy.device).expand(proxy.shape)
        return everyone, torch.ones_like(proxy, dtype=torch.float32), everyone[..., :0]
    worth = proxy.double()
    worth = worth + worth.mean(-1, keepdim=True) * SMALLEST_SHARE + torch.finfo(torch.float64).tiny
    worth, order = worth.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(hidden, device=proxy.device)
    # With the first j certain, the others share what is left; j is the first for which none of them passes 1.
    left = worth.flip(-1).cumsum(-1).flip(-1)
    fits = (count - place) * worth <= left
    certain = fits.to(torch.int8).argmax(-1, keepdim=True)
    scale = (count - certain) / left.gather(-1, certain)
    share = torch.where(place < certain, 1.0, (worth * scale).clamp(max=1.0))
    ticks = starts[..., None].double() + place[:count]
    taken = torch.searchsorted(share.cumsum(-1), ticks, right=True).clamp(max=hidden - 1)
    chosen = order.gather(-1, taken)
    is_chosen = torch.zeros_like(order, dtype=torch.int8).scatter_(-1, chosen, 1)
    rest = is_chosen.sort(dim=-1, stable=True).indices[..., : hidden - count]
    return chosen, (1 / share.gather(-1, taken)).float(), rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anchor:
    """What the run with all visible patches leaves behind; tokens are hidden patches, class token, visible ones.

    `tokens` `[N, T, E]`: the first layer's input; `queries` `[N, T, E]`: its queries; `kept`: keys and values of each
    layer, `[N, T, 2 E]`; `prediction` float32 `[N, H, P]`; `proxy` float32 `[N, V, H]`: how much hidden tokens hear of
    each visible patch.
    """

    tokens: Tensor
    queries: Tensor
    kept: list[Tensor]
    prediction: Tensor
    proxy: Tensor


class FrozenEstimator:
    """Estimates scores with the decoder of a model that `teacher.ready.prepare_teacher` made ready."""

    def __init__(self, model: MaskedAutoencoder, visible: int, count: int, metric: Metric) -> None:
        """`visible`: V; `count`: K, from `count_tokens`."""
        self._model, self._count, self._metric = model, count, metric
        self._others_VV = others_of(visible).to(model.cls_token.device)
        self._blocks: list[InferenceBlock] = []
        for block in model.decoder_blocks:
            assert isinstance(block, InferenceBlock), "the model was not prepared"
            self._blocks.append(block)

    def scores(
        self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, starts_NV: Tensor, largest: int
    ) -> Tensor:
        """Scores float32 `[N, V]`; at most `largest` removals run at once, or one of each view.

        `latent` `[N, 1 + V, D]` from the encoder, `visible_NV` and `hidden_NH` the positions, int64; `starts_NV`:
        random numbers (see `draw_starts`).
        """
        views, visible = visible_NV.shape
        anchor = self.anchor(latent, visible_NV, hidden_NH)
        chosen_NVK, weight_NVK, rest = draw_tokens(anchor.proxy, starts_NV, self._count)
        scores: list[Tensor] = []
        everyone = torch.arange(visible, device=latent.device)
        for removed in torch.split(everyone, max(1, largest // views)):
            chosen_NRK = chosen_NVK[:, removed]
            change = self._predict_without(anchor, removed, chosen_NRK, rest[:, removed])
            change -= _rows(anchor.prediction, chosen_NRK)
            change_NRK = (change.abs_() if self._metric == "l1" else change.square_()).mean(-1)
            scores.append((change_NRK * weight_NVK[:, removed]).sum(-1) / hidden_NH.shape[1])
        return torch.cat(scores, dim=1)

    def anchor(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Anchor:
        """Run the decoder with all visible patches."""
        hidden = hidden_NH.shape[1]
        tokens = x = self._model.decoder_tokens(latent, visible_NV, hidden_NH)
        width = x.shape[-1]
        kept: list[Tensor] = []
        reach = x.new_zeros(*x.shape[:2], visible_NV.shape[1], dtype=torch.float32)
        for block in self._blocks:
            qkv = block.attn.qkv(block.norm1(x))
            queries, keys_values = qkv[..., :width], qkv[..., width:].contiguous()
            if not kept:
                first_queries = queries.contiguous()
            kept.append(keys_values)
            mixed = _attend(block, queries, keys_values)
            reach = _reach(block, queries, keys_values, mixed, reach)
            x = block.finish(x, mixed)
        prediction = self._model.decoder_pred(self._model.decoder_norm(x[:, :hidden])).float()
        proxy = reach[:, :hidden].transpose(1, 2)
        return Anchor(tokens=tokens, queries=first_queries, kept=kept, prediction=prediction, proxy=proxy)

    def _predict_without(self, anchor: Anchor, removed_R: Tensor, chosen_NRK: Tensor, rest: Tensor) -> Tensor:
        """`f(all \\ r)` at the chosen hidden patches, float32 `[N, R, K, P]`; r: places among the visible."""
        views, removals, read = chosen_NRK.shape
        hidden, width = anchor.proxy.shape[2], anchor.tokens.shape[2]
        seen = functional.pad(self._others_VV[removed_R] + 1, (1, 0)) + hidden
        slots = torch.cat([chosen_NRK, seen.expand(views, -1, -1), rest], dim=2).flatten(0, 1)
        sequences, fresh = views * removals, read + seen.shape[1]
        view = torch.arange(views, device=slots.device).repeat_interleave(removals)
        # All tokens of all views are one list: a row is copied whole.
        everyone = (slots + anchor.tokens.shape[1] * view[:, None]).flatten()
        first = everyone.reshape(sequences, -1)[:, :fresh].flatten()
        x = anchor.tokens.flatten(0, 1).index_select(0, first).reshape(sequences, fresh, width)
        for number, (block, kept) in enumerate(zip(self._blocks, anchor.kept, strict=True)):
            keys_values = kept.flatten(0, 1).index_select(0, everyone).reshape(sequences, -1, 2 * width)
            if number == 0:
                # Nothing has changed yet but that one key is missing.
                queries = anchor.queries.flatten(0, 1).index_select(0, first).reshape(x.shape)
            else:
                qkv = block.attn.qkv(block.norm1(x))
                queries, keys_values[:, :fresh] = qkv[..., :width], qkv[..., width:]
            if number == len(self._blocks) - 1:
                # Nothing reads the visible tokens any more.
                queries, x = queries[:, :read], x[:, :read]
            x = block.finish(x, _attend(block, queries, keys_values))
        prediction: Tensor = self._model.decoder_pred(self._model.decoder_norm(x)).float()
        return prediction.reshape(views, removals, read, -1)


def _rows(values_NHP: Tensor, places_NRK: Tensor) -> Tensor:
    """`[N, R, K, P]` out of `[N, H, P]`."""
    return values_NHP[torch.arange(len(values_NHP), device=places_NRK.device)[:, None, None], places_NRK]


def _heads(block: InferenceBlock, x: Tensor) -> Tensor:
    """`[N, heads, tokens, E / heads]` of `[N, tokens, E]`."""
    return x.reshape(*x.shape[:2], block.attn.num_heads, -1).transpose(1, 2)


def _attend(block: InferenceBlock, queries: Tensor, keys_values: Tensor) -> Tensor:
    """Attention without its last projection, `[N, queries, E]`."""
    keys, values = keys_values.chunk(2, dim=-1)
    mixed = functional.scaled_dot_product_attention(
        _heads(block, queries), _heads(block, keys), _heads(block, values)
    )
    return mixed.transpose(1, 2).flatten(2)


def _reach(
    block: InferenceBlock, queries: Tensor, keys_values: Tensor, mixed: Tensor, before: Tensor
) -> Tensor:
    """How far the removal of each visible token reaches after a block, float32 `[N, T, V]`; `before`: ahead of it.

    Attention that mixes o, with weight a on a value v, would without it mix something a / (1 - a) |v - o| away from o.
    Its mean over heads is added up over layers; what tokens pass on of their own change is added in part.
    """
    visible = before.shape[2]
    keys, values = (_heads(block, part).float() for part in keys_values.chunk(2, dim=-1))
    weights = (_heads(block, queries).float() @ keys.transpose(2, 3) * block.attn.scale).softmax(-1)
    on_visible = weights[..., -visible:]
    away = torch.cdist(_heads(block, mixed).float(), values[:, :, -visible:])
    direct = (on_visible / (1 - on_visible).clamp(min=SMALLEST_SHARE) * away).mean(1)
    after: Tensor = before + direct + PASSED_ON * (weights.mean(1) @ before)
    return after
