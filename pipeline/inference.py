"""A teacher made ready to run fast on one device: precision, and the linear layers' library on processors."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable
from typing import cast, get_args

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from patchsieve.pipeline.config import Precision
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.blocks import InferenceBlock
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

HALF_GAIN = 1.1
"""Half precision is taken only where it is this many times faster: it costs some order of the ranks."""

_PROBE_ROUNDS = 3


_ROWS = 4096
"""About how many rows a linear layer gets at a time; more and fewer work as well."""


def pack(weight: Tensor) -> Tensor:
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
        self.packed, self.bias = pack(linear.weight.detach()), linear.bias
        self.gelu = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        after, kind = ("gelu", "none") if self.gelu else ("none", "")
        result = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, after, [], kind)
        return cast(Tensor, result)


class NarrowingNorm(nn.Module):
    """A norm computed in float32 whose result is handed on in half precision."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` float32 to the same shape in half precision."""
        return cast(Tensor, self.norm(x)).to(self.dtype)


def has_onednn(device: torch.device) -> bool:
    """Whether linear layers run in oneDNN: always on x86 processors, so that scores repeat exactly."""
    return (
        device.type == "cpu"
        and platform.machine().lower() in {"x86_64", "amd64"}
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    )


def prepare(model: MaskedAutoencoder, precision: Precision, device: torch.device) -> MaskedAutoencoder:
    """A frozen copy of the model on the device, in evaluation mode; unchanged weights are shared, not copied.

    Half precision holds for the attention and the perceptron of every block, which are nearly all of the
    work. Norms, residual sums, embeddings, the prediction and with it the differences of predictions stay in
    float32: scores are small differences of large numbers, and their order would suffer. On processors the
    decoder's first block stays in float32 too: there a removal's effect is smallest beside what it is added
    to, and bf16 in that block alone makes half of the error (on the tiny teacher, Kendall's tau against fp32
    is 0.990 so and 0.985 without). A GPU would lose too much time by it, and has fp16 with an eighth of
    bf16's error.

    Raises UserError for a precision that the device cannot do.
    """
    check_precision(precision, device)
    shared: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to(device), requires_grad=False) for p in model.parameters()
    }
    shared.update({id(b): b.detach().to(device) for b in model.buffers()})
    ready = copy.deepcopy(model, shared).eval()
    if precision != "fp32":
        full = 1 if device.type == "cpu" else 0
        for block in [*ready.blocks, *ready.decoder_blocks[full:]]:
            narrow(block, precision)
    ready.blocks = nn.ModuleList(InferenceBlock(block) for block in ready.blocks)
    ready.decoder_blocks = nn.ModuleList(InferenceBlock(block) for block in ready.decoder_blocks)
    use_onednn(ready, precision, device)
    return ready


def check_precision(precision: Precision, device: torch.device) -> None:
    """UserError for a precision that the device cannot do."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; processors have bf16 and fp32")


def narrow(block: nn.Module, precision: Precision) -> None:
    """Attention and perceptron of a pre-norm block of timm in half precision, with the norms in float32."""
    for name in ("attn", "mlp"):
        block.get_submodule(name).to(_DTYPES[precision])
    for name in ("norm1", "norm2"):
        norm = block.get_submodule(name)
        setattr(block, name, NarrowingNorm(norm, _DTYPES[precision]))


def use_onednn(module: nn.Module, precision: Precision, device: torch.device) -> None:
    """Have linear layers below the module run in oneDNN, where the device has it; in float32 with GELU in them."""
    if has_onednn(device):
        _replace_linear_layers(module)
        if precision == "fp32":
            _fuse_gelu(module)


def _replace_linear_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, OneDnnLinear(child))
        else:
            _replace_linear_layers(child)


def _fuse_gelu(module: nn.Module) -> None:
    """Let oneDNN apply GELU, the exact one, while the results are in registers."""
    for part in module.modules():
        if isinstance(part, Mlp) and isinstance(part.act, nn.GELU) and part.act.approximate == "none":
            assert isinstance(part.fc1, OneDnnLinear)
            part.fc1.gelu, part.act = True, nn.Identity()


def this_device() -> torch.device:
    """The GPU, where torch can use one: Ray sets CUDA_VISIBLE_DEVICES for declared GPUs that need not exist."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Kind and model of a device of this machine, for the record."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return f"{device.type} {model}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_precision(model: MaskedAutoencoder, device: torch.device) -> Precision:
    """The fastest precision that is safe, by a short probe of this model on this device (`fastest_precision`)."""
    return fastest_precision(lambda precision: _probe(model, precision, device), device)


def fastest_precision(
    make_probe: Callable[[Precision], Callable[[], Tensor]], device: torch.device
) -> Precision:
    """The precision whose probe is the fastest.

    Nothing is assumed: some processors run bf16 several times faster than fp32, some slower. fp16 is tried on
    GPUs only. A precision whose results are not all finite is out, and fp32 stays where the gain is under
    10 %.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        halves: tuple[Precision, ...] = ("bf16", "fp16") if native else ("fp16",)
    else:
        halves = ("bf16",)
    precisions: tuple[Precision, ...] = ("fp32", *halves)
    probes = {name: make_probe(name) for name in precisions}
    usable = [name for name, probe in probes.items() if bool(probe().isfinite().all())]
    seconds = dict.fromkeys(usable, float("inf"))
    for _ in range(_PROBE_ROUNDS):
        # In turns, and the best of each: other work on the machine then hits all alike.
        for name in usable:
            started = time.perf_counter()
            probes[name]()
            synchronise(device)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return pick_precision(seconds)


def pick_precision(seconds: dict[Precision, float]) -> Precision:
    """The choice, given what each usable precision took.

    fp16 comes before bf16 unless that is clearly faster: its errors are an eighth, and ranks hang on small
    differences.
    """
    best: Precision = "fp32"
    for name in ("fp16", "bf16"):
        if name in seconds and seconds[name] * HALF_GAIN < seconds[best]:
            best = name
    return best


def _probe(model: MaskedAutoencoder, precision: Precision, device: torch.device) -> Callable[[], Tensor]:
    ready = prepare(model, precision, device)
    count = 64 if device.type == "cuda" else 4
    positions, values = model.config.positions, model.config.patch_values
    visible = max(1, positions // 10)
    # White noise of the deviation that normalised pixels have.
    patches = torch.randn(count, visible, values, generator=torch.Generator().manual_seed(0)).to(device)
    order = torch.arange(positions, device=device).expand(count, -1)

    @torch.inference_mode()
    def run() -> Tensor:
        latent = ready.encode(patches, order[:, :visible])
        return ready.decode(latent, order[:, :visible], order[:, visible:], positions - visible)

    return run
