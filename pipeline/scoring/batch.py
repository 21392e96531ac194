"""Views as the scorer takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.scoring.frozen import draw_starts
from patchsieve.pipeline.scoring.views import View


def batch_of(views: Sequence[View], rows: RowConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `Scorer.launch` takes of some views: pixels, positions and the frozen estimator's random numbers."""
    visible_NV = torch.from_numpy(np.stack([view.visible for view in views])).long()
    keys = [(view.sample_key, view.view) for view in views]
    pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
    return pixels, visible_NV, draw_starts(rows, keys, visible_NV.shape[1])
