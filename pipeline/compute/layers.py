"""The layers of a transformer made ready for inference, of whichever model.

Blocks of timm with their parts open to be shared; linear layers by oneDNN on processors; weights and activations in
half precision.

Shape suffixes: B sequences, T tokens, E width, h heads, d = E / h.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from patchsieve.pipeline.row_config import Precision


class InferenceBlock(nn.Module):
    """Takes over the layers of a timm block; `attn.qkv`, `attn.proj` and `mlp` may be replaced afterwards.

    Attention is PyTorch's fused one. Written out in bfloat16 it was 1.4 times as fast on a processor without matrix
    tiles, but rounds the logits: on the bundled teacher Kendall's tau against float32 fell from 0.990 to 0.984.
    """

    def __init__(self, block: Any) -> None:
        """`block`: a pre-norm `timm.models.vision_transformer.Block` without layer scale or dropped paths."""
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`, or with `read` the first tokens of that alone, `[B, read, E]`."""
        queries, keys, values = self.project(x)
        if read is not None:
            queries, x = queries[:, :, :read], x[:, :read]
        return self.finish(x, scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens `[B, T, E]`, each `[B, h, T, d]`."""
        qkv: Tensor = self.attn.qkv(self.norm1(x))
        queries, keys, values = qkv.view(*x.shape[:2], 3, self.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        return queries, keys, values

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output `[B, T, E]`, given its input and what attention made of that, `[B, T, E]`."""
        x = x + self.attn.proj(mixed)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_ROWS = 4096
"""About how many rows a linear layer gets at a time; more and fewer work as well."""


def reorder_weight(weight: Tensor) -> Tensor:
    """Weights `[outputs, inputs]` as oneDNN wants them: else it orders them anew in every call."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS))


class OneDnnLinear(nn.Module):
    """A linear layer that runs in oneDNN whatever its type, on a processor and without gradients.

    For float32 PyTorch calls MKL, which holds back on processors that are not Intel's: on an AMD Zen 5 core
    it reached 110 GFLOP/s where oneDNN reached 250. The operator is the one that `torch.compile` emits for
    frozen models.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """Keeps a copy of the weights in the order in which the library reads them."""
        super().__init__()
        self.packed, self.bias = reorder_weight(linear.weight.detach()), linear.bias
        self.gelu = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        after, kind = ("gelu", "none") if self.gelu else ("none", "")
        result = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, after, [], kind)
        return cast(Tensor, result)


class GeluLinear(nn.Module):
    """A linear layer with GELU in it, in half precision on a GPU: cuBLAS applies it while the results are in registers.

    It is the approximation by tanh, at most 0.0005 away from the exact one, which is less than half precision rounds
    off; by itself GELU took a tenth of a batch's time on an H100.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Shares the layer's weights."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rows = x.reshape(-1, x.shape[-1])
        result: Tensor = torch.ops.aten._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)
        return result.view(*x.shape[:-1], -1)


class NarrowingNorm(nn.Module):
    """A norm computed in float32 whose result is handed on in half precision."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` float32 to the same shape in half precision."""
        return cast(Tensor, self.norm(x)).to(self.dtype)


def has_half(device: torch.device) -> bool:
    """Whether a device computes in bf16; processors from before AVX-512 only pretend to, far slower than in float32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_onednn(device: torch.device) -> bool:
    """Whether linear layers run in oneDNN: always on x86 processors, so that scores repeat exactly."""
    return (
        device.type == "cpu"
        and platform.machine().lower() in {"x86_64", "amd64"}
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    )


def narrow(block: nn.Module, precision: Precision, device: torch.device) -> None:
    """Attention and perceptron of a pre-norm block of timm in half precision, with the norms in float32."""
    for name in ("attn", "mlp"):
        block.get_submodule(name).to(_DTYPES[precision])
    for name in ("norm1", "norm2"):
        norm = block.get_submodule(name)
        setattr(block, name, NarrowingNorm(norm, _DTYPES[precision]))
    if device.type == "cuda":
        _fuse_gelu(block, GeluLinear)


def use_onednn(module: nn.Module, precision: Precision, device: torch.device) -> None:
    """Have linear layers below the module run in oneDNN, where the device has it; in float32 with GELU in them."""
    if has_onednn(device):
        _replace_linear_layers(
            module, {torch.float32, torch.bfloat16} if has_half(device) else {torch.float32}
        )
        if precision == "fp32":
            _fuse_gelu(module, _with_gelu)


def _replace_linear_layers(module: nn.Module, types: set[torch.dtype]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and child.weight.dtype in types:
            setattr(module, name, OneDnnLinear(child))
        else:
            _replace_linear_layers(child, types)


def _fuse_gelu(module: nn.Module, fused: Callable[[Any], Any]) -> None:
    """Let the library of the linear layers apply GELU: `fused` gives a layer that does, for one that does not."""
    for part in module.modules():
        if isinstance(part, Mlp) and isinstance(part.act, nn.GELU) and part.act.approximate == "none":
            part.fc1, part.act = fused(part.fc1), nn.Identity()


def _with_gelu(layer: OneDnnLinear) -> OneDnnLinear:
    layer.gelu = True
    return layer
