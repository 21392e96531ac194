"""What learns from an arm's images: a linear classifier on a frozen encoder, or a whole transformer.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.prove.config import Recipe
from patchsieve.ranker.prove.encoders import Encoder
from patchsieve.ranker.prove.finetune import fine_tune, predict
from patchsieve.ranker.prove.probe import Probe, choose_penalty, fit_probe
from patchsieve.ranker.prove.tokens import TokenClassifier, Tokens
from patchsieve.ranker.prove.views import View

Weights = Mapping[str, Tensor]
"""What was learned, by name."""

Seen = TypeVar("Seen")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """`weights`: what predicts; `validation`: its accuracy on the images to choose on; `penalty`: of a probe's weights.

    `flops`: operations that all of the training took, None where that is one forward pass of each image.
    """

    weights: Weights
    validation: float
    penalty: float | None = None
    flops: float | None = None


class Learner(Protocol[Seen]):
    """Learns labels from what it sees of images."""

    def see(self, views: Sequence[View]) -> Seen:
        """What is kept of some images."""
        ...

    def joined(self, parts: Sequence[Seen]) -> Seen:
        """Several of these as one, in their order."""
        ...

    def flops(self, tokens: float) -> float:
        """Operations of a forward pass of one image of so many tokens, a product and a sum being two."""
        ...

    def learn(
        self,
        seen: Seen,
        labels_N: NDArray[np.int64],
        *,
        kept_N: NDArray[np.bool_],
        chosen_on_N: NDArray[np.bool_],
        classes: int,
        seed: int | None,
    ) -> Learned:
        """Learn the images that are `kept`, with those `chosen_on` to choose and validate on; both bool `[N]`."""
        ...

    def predict(self, weights: Weights, seen: Seen, classes: int) -> NDArray[np.int64]:
        """The class of each image, int64 `[N]`."""
        ...


class ProbeLearner:
    """A linear classifier on a frozen encoder's features; fitted to all train images once its penalty is chosen."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.flops = encoder.flops

    def see(self, views: Sequence[View]) -> NDArray[np.float32]:
        """See `Learner`: features float32 `[N, D]`."""
        return self._encoder.features(views)

    def joined(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """See `Learner`."""
        return np.concatenate(parts)

    def learn(
        self,
        seen: NDArray[np.float32],
        labels_N: NDArray[np.int64],
        *,
        kept_N: NDArray[np.bool_],
        chosen_on_N: NDArray[np.bool_],
        classes: int,
        seed: int | None,
    ) -> Learned:
        """See `Learner`; convex, so that nothing is drawn."""
        assert seed is None, "a probe has one solution"
        penalty, _ = choose_penalty(
            seen, labels_N, fitted_N=kept_N & ~chosen_on_N, chosen_on_N=chosen_on_N, classes=classes
        )
        probe = fit_probe(seen[kept_N], labels_N[kept_N], classes, penalty.value)
        weights = {name: torch.from_numpy(value.copy()) for name, value in vars(probe).items()}
        return Learned(weights=weights, validation=penalty.accuracy, penalty=penalty.value)

    def predict(self, weights: Weights, seen: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
        """See `Learner`."""
        return Probe(**{name: value.numpy() for name, value in weights.items()}).predict(seen)


class FinetuneLearner:
    """A vision transformer that is trained further on the tokens that are left; dropped ones cost it nothing.

    It learns the images that nothing is chosen on, and is not trained again after a choice.
    """

    def __init__(
        self,
        vit: MaskedAutoencoder | VisionTransformer,
        recipe: Recipe,
        *,
        grid: int,
        patch_size: int,
        device: torch.device,
    ) -> None:
        """`vit`: what every arm starts from."""
        self._vit, self._recipe, self._device = vit, recipe, device
        self._grid, self._patch_size = grid, patch_size
        self.flops = self._model(classes=1, seed=0).flops

    def see(self, views: Sequence[View]) -> list[Tokens]:
        """See `Learner`: the tokens themselves."""
        return [Tokens.of(view) for view in views]

    def joined(self, parts: Sequence[list[Tokens]]) -> list[Tokens]:
        """See `Learner`."""
        return [tokens for part in parts for tokens in part]

    def learn(
        self,
        seen: list[Tokens],
        labels_N: NDArray[np.int64],
        *,
        kept_N: NDArray[np.bool_],
        chosen_on_N: NDArray[np.bool_],
        classes: int,
        seed: int | None,
    ) -> Learned:
        """See `Learner`; the seed is that of the last layer's start and of the order of images."""
        assert seed is not None, "fine-tuning draws"
        learned_N = kept_N & ~chosen_on_N
        model = self._model(classes=classes, seed=seed)
        train = [seen[place] for place in np.flatnonzero(learned_N)]
        flops = fine_tune(model, train, labels_N[learned_N], self._recipe, seed=seed)
        found = predict(model, [seen[place] for place in np.flatnonzero(chosen_on_N)])
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        accuracy = float((found == labels_N[chosen_on_N]).mean())
        return Learned(weights=weights, validation=accuracy, flops=flops)

    def predict(self, weights: Weights, seen: list[Tokens], classes: int) -> NDArray[np.int64]:
        """See `Learner`."""
        model = self._model(classes=classes, seed=0)
        model.load_state_dict(dict(weights))
        return predict(model, seen)

    def _model(self, *, classes: int, seed: int) -> TokenClassifier:
        return TokenClassifier(
            self._vit, grid=self._grid, patch_size=self._patch_size, classes=classes, seed=seed
        ).to(self._device)
