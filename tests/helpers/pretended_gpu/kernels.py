"""What a GPU's operations do where those of a processor do otherwise, and how they are counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.pretended_gpu.nested import mapped, tensors_in

aten = torch.ops.aten

WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::bincount",
}
"""Operations whose result is a number of Python's or decides a shape."""

INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_unsafe_index",
    "aten::_index_put_impl_",
}
"""Operations that take index tensors from main memory, and wait while they are moved."""

WITHOUT_KERNEL = {
    "aten::_unsafe_view",
    "aten::lift_fresh",
    "aten::_reshape_alias",
    "aten::alias",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
}
"""Views of which the schema does not tell, and what only reserves memory."""

PRODUCTS = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::baddbmm",
    "aten::convolution",
    "aten::convolution_backward",
}
"""Operations whose sums are in float32 when their operands are in half precision."""

HALVES = (torch.float16, torch.bfloat16)


def waits(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation can be told about only once the device has done it."""
    if name in INDEXING:
        return any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])
    return name in WAITING or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None)


def compute(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The operation on tensors of a processor, or of the device `meta`, as a GPU does it."""
    special = SPECIAL.get(name)
    if special is not None:
        return special(*args, **kwargs)
    half = half_of(args) if name in PRODUCTS else None
    if half is None:
        return func(*args, **kwargs)
    wide = mapped(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs))
    return mapped(lambda x: x.to(half) if isinstance(x, Tensor) else x, func(*wide[0], **wide[1]))


def half_of(args: Any) -> torch.dtype | None:
    """The half precision that tensors of processors are in, if they are."""
    return next((x.dtype for x in tensors_in(args) if x.dtype in HALVES and not x.is_meta), None)


def product_with_gelu(bias: Tensor, x: Tensor, weight: Tensor, *, use_gelu: bool = False) -> Tensor:
    """`_addmm_activation`: cuBLAS knows GELU by tanh alone, and applies it before anything is rounded."""
    assert use_gelu, "ReLU is not asked for anywhere"
    if x.is_meta:
        return aten.addmm(bias, x, weight)
    return functional.gelu(aten.addmm(bias.float(), x.float(), weight.float()), approximate="tanh").to(
        x.dtype
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """The kernel that PyTorch picks on a GPU where nobody asks for another: flash in half precision, else efficient."""
    assert (attn_mask, dropout_p, is_causal) == (None, 0.0, False), "asked for nowhere"
    if query.dtype in HALVES:
        found: Tensor = aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return found
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, training)[0]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output in the memory layout of the fused kernels, and log-sum-exp."""
    if q.is_meta:
        shape = (q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
        sums = torch.empty(q.shape[:3], dtype=torch.float32, device="meta")
        return torch.empty(shape, dtype=q.dtype, device="meta").transpose(1, 2), sums
    logits = (q.float() @ k.float().transpose(2, 3)) / math.sqrt(q.shape[-1])
    out = (logits.softmax(-1) @ v.float()).to(q.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2), logits.logsumexp(-1)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    out, sums = _attend(q, k, v)
    seed = torch.zeros((), dtype=torch.uint64, device=q.device)
    return out, sums, None, None, q.shape[2], k.shape[2], seed, seed.clone(), sums.new_empty(0)


def _efficient(q: Tensor, k: Tensor, v: Tensor, _bias: None, _sums: bool) -> tuple[Any, ...]:
    out, sums = _attend(q, k, v)
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    return out, sums, seed, seed.clone()


def _attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / math.sqrt(q.shape[-1])
    q32, k32, v32, g32 = (x.float() for x in (q, k, v, grad))
    weights = ((q32 @ k32.transpose(2, 3)) * scale).softmax(-1)
    to_weights = g32 @ v32.transpose(2, 3)
    to_logits = weights * (to_weights - (to_weights * weights).sum(-1, keepdim=True)) * scale
    found = to_logits @ k32, to_logits.transpose(2, 3) @ q32, weights.transpose(2, 3) @ g32
    return found[0].to(q.dtype), found[1].to(k.dtype), found[2].to(v.dtype)


def _flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_others: Any) -> tuple[Any, ...]:
    return _attend_backward(grad, q, k, v)


def _efficient_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_others: Any) -> tuple[Any, ...]:
    return (*_attend_backward(grad, q, k, v), None)


SPECIAL: dict[str, Callable[..., Any]] = {
    "aten::_addmm_activation": product_with_gelu,
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_efficient_attention": _efficient,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
