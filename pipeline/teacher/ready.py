"""A teacher made ready to run fast on one device: its precision, and the linear layers' library on processors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from patchsieve.pipeline.compute.layers import InferenceBlock, narrow, use_onednn
from patchsieve.pipeline.compute.precision import check_precision, fastest_precision
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.teacher.model import MaskedAutoencoder


def prepare_teacher(
    model: MaskedAutoencoder, precision: Precision, device: torch.device
) -> MaskedAutoencoder:
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
            narrow(block, precision, device)
    ready.blocks = nn.ModuleList(InferenceBlock(block) for block in ready.blocks)
    ready.decoder_blocks = nn.ModuleList(InferenceBlock(block) for block in ready.decoder_blocks)
    use_onednn(ready, precision, device)
    return ready


def choose_precision(model: MaskedAutoencoder, device: torch.device) -> Precision:
    """The fastest precision that is safe, by a short probe of this model on this device (`fastest_precision`)."""
    return fastest_precision(lambda precision: _probe(model, precision, device), device)


def _probe(model: MaskedAutoencoder, precision: Precision, device: torch.device) -> Callable[[], Tensor]:
    ready = prepare_teacher(model, precision, device)
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
