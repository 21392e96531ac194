"""Leave-one-out scores by the slow way, written apart from the project's code: what fast ones must equal.

One image, one removal at a time. No sequence is ever shortened: all patches and all places are there, and the
ones that must not take part are masked out of every attention (their columns; what their rows give is never read).
Attention is three plain matrix products from the model's weights. Nothing is imported from the project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Reference:
    """Scores by the weights of a masked autoencoder, in float64 unless told otherwise."""

    def __init__(
        self,
        state: dict[str, Tensor],
        *,
        patch_size: int,
        heads: int,
        decoder_heads: int,
        norm_eps: float = 1e-6,
        output_space: str = "pixels",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.state = {name: value.detach().to(dtype) for name, value in state.items()}
        self.patch_size, self.heads, self.decoder_heads = patch_size, heads, decoder_heads
        self.eps, self.output_space, self.dtype = norm_eps, output_space, dtype

    def scores(self, image: Tensor, visible: Sequence[int], *, removal: str, metric: str) -> list[float]:
        """One score for each visible patch of a uint8 image `[3, S, S]`."""
        everyone = list(visible)
        anchor = self.predict(image, everyone, [])
        result = []
        for r in everyone:
            others = [v for v in everyone if v != r]
            without = (others, []) if removal == "encoder" else (everyone, [r])
            changed = self.predict(image, *without)
            hidden = [i for i in range(len(anchor)) if i not in everyone]
            result.append(self.change(metric, image, anchor, changed, hidden))
        return result

    def predict(self, image: Tensor, visible: list[int], dropped: list[int]) -> Tensor:
        """Predictions of all places `[L, P]`; `dropped` are encoded but masked out of the decoder."""
        latent = self.encode(image, visible)
        x = latent @ self.state["decoder_embed.weight"].T + self.state["decoder_embed.bias"]
        mask_token = self.state["mask_token"][0, 0]
        for place in range(len(x) - 1):
            if place not in visible:
                x[1 + place] = mask_token
        x = x + self.state["decoder_pos_embed"][0]
        x = self.blocks("decoder_blocks", x, self.decoder_heads, dropped)
        x = self.norm("decoder_norm", x)
        return (x @ self.state["decoder_pred.weight"].T + self.state["decoder_pred.bias"])[1:]

    def encode(self, image: Tensor, visible: list[int]) -> Tensor:
        """Latents `[1 + L, D]`, of which only the class token's and the visible patches' mean anything."""
        mean, std = (torch.tensor(c, dtype=self.dtype)[:, None, None] for c in (MEAN, STD))
        pixels = (image.to(self.dtype) / 255 - mean) / std
        weight, bias = self.state["patch_embed.proj.weight"], self.state["patch_embed.proj.bias"]
        cut = torch.nn.functional.conv2d(pixels[None], weight, bias, stride=self.patch_size)
        x = torch.cat([self.state["cls_token"][0], cut[0].flatten(1).T]) + self.state["pos_embed"][0]
        out = [place for place in range(len(x) - 1) if place not in visible]
        return self.norm("norm", self.blocks("blocks", x, self.heads, out))

    def blocks(self, stack: str, x: Tensor, heads: int, masked_places: list[int]) -> Tensor:
        mask = torch.zeros(len(x), dtype=self.dtype)
        mask[[1 + place for place in masked_places]] = -math.inf
        depth = 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith(stack + "."))
        for i in range(depth):
            name = f"{stack}.{i}"
            x = x + self.attention(f"{name}.attn", self.norm(f"{name}.norm1", x), heads, mask)
            inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
            inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
            x = x + self.linear(f"{name}.mlp.fc2", inner)
        return x

    def attention(self, name: str, x: Tensor, heads: int, mask: Tensor) -> Tensor:
        queries, keys, values = self.linear(f"{name}.qkv", x).chunk(3, dim=1)
        width = x.shape[1] // heads
        outputs = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weight = queries[:, part] @ keys[:, part].T / math.sqrt(width) + mask
            outputs.append(weight.softmax(1) @ values[:, part])
        return self.linear(f"{name}.proj", torch.cat(outputs, dim=1))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def change(self, metric: str, image: Tensor, anchor: Tensor, changed: Tensor, hidden: list[int]) -> float:
        if metric == "l1":
            return float((changed[hidden] - anchor[hidden]).abs().mean())
        if metric == "l2":
            return float((changed[hidden] - anchor[hidden]).square().mean())
        x, y = self.painted(image, changed, hidden), self.painted(image, anchor, hidden)
        if metric == "psnr":
            return 10 * math.log10(max(float((x - y).square().mean()), 1e-15))
        return 1 - structural_similarity(x, y)

    def painted(self, image: Tensor, prediction: Tensor, hidden: list[int]) -> Tensor:
        """The image `[3, S, S]` on a scale from 0 to 1 with predictions in the hidden places."""
        mean, std = (torch.tensor(c, dtype=self.dtype)[:, None, None] for c in (MEAN, STD))
        result = image.to(self.dtype) / 255
        p, grid = self.patch_size, image.shape[1] // self.patch_size
        for place in hidden:
            row, column = place // grid * p, place % grid * p
            patch = prediction[place].reshape(p, p, 3).permute(2, 0, 1)
            if self.output_space == "normalised":
                true = (result[:, row : row + p, column : column + p] - mean) / std
                patch = patch * (true.var() + 1e-6).sqrt() + true.mean()
            result[:, row : row + p, column : column + p] = patch * std + mean
        return result


def structural_similarity(x: Tensor, y: Tensor) -> float:
    """SSIM of two images `[3, S, S]` by the textbook's formula, window by window."""
    offsets = torch.arange(11, dtype=x.dtype) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = line[:, None] * line / (line[:, None] * line).sum()
    total, count = 0.0, 0
    c1, c2 = 0.01**2, 0.03**2
    for top in range(x.shape[1] - 10):
        a = x[:, top : top + 11].unfold(2, 11, 1).permute(0, 2, 1, 3)
        b = y[:, top : top + 11].unfold(2, 11, 1).permute(0, 2, 1, 3)
        mean_a, mean_b = (a * window).sum((2, 3)), (b * window).sum((2, 3))
        var_a = (a.square() * window).sum((2, 3)) - mean_a.square()
        var_b = (b.square() * window).sum((2, 3)) - mean_b.square()
        cov = (a * b * window).sum((2, 3)) - mean_a * mean_b
        similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
        total, count = total + float(similarity.sum()), count + similarity.numel()
    return total / count


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-a of two score lists: pairs in the same order less pairs in the other, over all pairs."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    agreement = sum(math.copysign(1, (x[i] - x[j]) * (y[i] - y[j])) for i, j in pairs)
    return agreement / len(pairs)
