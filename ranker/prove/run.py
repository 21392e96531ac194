"""From the configuration of `patchsieve prove` to what was measured, in one process.

Train images first: every arm is fitted, and a selector chosen on the validation split. Only then are the test shards
opened, and that selector and the controls tested.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.settings import adopt_config
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.row_config import DECODER
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.storage import absolute_url
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.ranker.baselines.baselines import BaselineSources
from patchsieve.ranker.baselines.fits import FITS
from patchsieve.ranker.evaluate.images import trained_contents
from patchsieve.ranker.prove.arms import (
    CONTROLS,
    FITTED,
    FULL,
    Arm,
    byte_controls,
    references,
    selector_arm,
    selector_names,
    token_controls,
)
from patchsieve.ranker.prove.config import ProveConfig
from patchsieve.ranker.prove.encoders import Encoder, TeacherEncoder, TimmEncoder
from patchsieve.ranker.prove.measure import ArmResult, Fitted, Measurement
from patchsieve.ranker.prove.photos import (
    LabelField,
    LabelledPhotos,
    class_names,
    read_photos,
    usable_test,
    validation_split,
)
from patchsieve.ranker.prove.records import ARMS_FOLDER, Records
from patchsieve.ranker.prove.report import Proof
from patchsieve.ranker.prove.verdict import compare_all, judge, over_thumbnail
from patchsieve.ranker.prove.views import Canvas
from patchsieve.ranker.prove.workbench import Workbench
from patchsieve.ranker.select.patch_scorer import PatchScorer, open_patch_source

PROVE_VERSION = 1
"""Raised only when the same settings give other figures. Part of the identity."""


def prove(config: ProveConfig, say: Callable[[str], None], *, run_id: str) -> Proof:
    """Measure, or go on where an earlier run on this folder ended; `say` gets a line on each step.

    Raises UserError for what cannot be measured; InfrastructureError where a store fails.
    """
    parts = _Parts(config)
    train_shards, test_shards = expand_shards(config.shards), expand_shards(config.test)
    label = LabelField(config.label, config.merged)
    train = parts.read(train_shards, "train", label, config.limit_train)
    _check_merged(config, train)
    classes = class_names(train)
    chosen_on_N = validation_split(train, config.validation, config.seed)
    say(f"train      {len(train)} images of {len(classes)} classes, {int(chosen_on_N.sum())} to choose on")
    records = parts.adopt(train, test_shards, run_id)
    measurement = Measurement(train, chosen_on_N, classes, parts.bench, parts.encoder)
    run = _Run(config, measurement, records, say)
    run.fit_train(parts.controls)
    choice = run.choose([shard.name for shard in test_shards], run_id)
    run.fit_bytes(choice["selector"], parts.controls)
    test = parts.read(test_shards, "test", label, config.limit_test)
    if set(test.contents) & trained_contents(parts.ranker):
        raise UserError(f"{config.ranker} was trained on a test shard: name others with --test")
    usable, notes = usable_test(test, train, set(classes))
    say(f"test       {len(usable)} images, to test {choice['selector']} and the controls on")
    arms = run.test(choice["selector"], parts.controls, usable)
    return run.conclude(
        arms,
        choice,
        {
            "protocol": config.protocol,
            "encoder": parts.encoder.name,
            "ranker": parts.ranker.name,
            "train_images": len(train),
            "validation_images": int(chosen_on_N.sum()),
            "test_images": len(usable),
            "classes": len(classes),
        },
        [*_notes(train, test, parts.lacking, config), *notes],
    )


def _check_merged(config: ProveConfig, train: LabelledPhotos) -> None:
    missing = sorted(set(config.merged.values()) - set(train.names))
    if missing:
        raise UserError(
            f"--merge: no train image has the label {missing[0]!r}, or one that is merged into it"
        )


def _notes(
    train: LabelledPhotos, test: LabelledPhotos, lacking: Sequence[str], config: ProveConfig
) -> list[str]:
    notes = [
        f"{photos.unlabelled} {photos.split} samples have no label in {config.label} and are left out"
        for photos in (train, test)
        if photos.unlabelled
    ]
    notes += [
        f"{photos.unreadable} {photos.split} samples have no image that can be read and are left out"
        for photos in (train, test)
        if photos.unreadable
    ]
    if lacking:
        notes.append(f"{' and '.join(lacking)} are no arms: {config.ranker} was stored without their fits")
    return notes


def _check_background(config: ProveConfig, grid: int, patch_size: int) -> None:
    """Refuse a thumbnail that patches do not fill, or that leaves none of what may be kept."""
    side = config.background or 0
    least = int(config.ratios[0] * grid**2)
    if side and (side % patch_size or (side // patch_size) ** 2 >= least):
        raise UserError(
            f"--background {side} must be a multiple of {patch_size} px, and take less than the {least} of "
            f"{grid**2} patches that --keep {config.ratios[0]:g} leaves"
        )


class _Parts:
    """Ranker, teacher, encoder and what makes views of images."""

    def __init__(self, config: ProveConfig) -> None:
        names = selector_names(config.background or 0)
        if config.selector != "auto" and config.selector not in names:
            raise UserError(f"--selector is {config.selector!r}, must be auto or one of {', '.join(names)}")
        if config.ranker.startswith("baseline:"):
            raise UserError(f"--ranker is {config.ranker}: baselines are controls already, name a ranker")
        strange = set(config.named_controls or ()) - set(CONTROLS)
        if strange:
            raise UserError(f"--controls: there is no {min(strange)!r}, only all or {', '.join(CONTROLS)}")
        self.config, device = config, this_device()
        source = open_patch_source(config.ranker, fits=None, teacher=None, seed=config.seed)
        assert source.ranker is not None, "baselines are refused above"
        self.ranker = source.ranker
        self.fits: dict[str, Any] = self.ranker.extra.get(FITS) or {}
        wanted = CONTROLS if config.named_controls is None else config.named_controls
        self.lacking = [name for name in FITTED if name in wanted and name not in self.fits]
        self.controls = [name for name in wanted if name not in self.lacking]
        self.teacher: TeacherFile = read_teacher(config.teacher)
        ours, theirs = self.ranker.config, self.teacher.config
        if (ours.grid, ours.patch_size) != (theirs.grid, theirs.patch_size):
            raise UserError(
                f"{self.ranker.name} ranks {ours.grid} x {ours.grid} patches of {ours.patch_size} px, --teacher "
                f"{self.teacher.name} sees {theirs.grid} x {theirs.grid} of {theirs.patch_size} px: name another"
            )
        _check_background(config, ours.grid, ours.patch_size)
        model = build_teacher(self.teacher, device=str(device))
        self.encoder: Encoder = (
            TeacherEncoder(model, self.teacher.name, self.teacher.digest, device)
            if config.backbone is None
            else TimmEncoder(config.backbone, device)
        )
        self.bench = Workbench(
            Canvas(ours.grid, ours.patch_size, ImageCodec("jpeg", config.quality)),
            PatchScorer(dataclasses.replace(source, precision="fp32"), device=device, batch_size=32),
            BaselineSources(
                grid=ours.grid, patch_size=ours.patch_size, seed=config.seed, fits=self.fits, teacher=model
            ),
        )

    def read(
        self, shards: Sequence[Shard], split: str, label: LabelField, limit: int | None
    ) -> LabelledPhotos:
        """The labelled images of a split."""
        ranker = self.ranker.config
        return read_photos(
            shards,
            split,
            label,
            grid=ranker.grid,
            patch_size=ranker.patch_size,
            image_field=self.config.image_field,
            limit=limit,
        )

    def adopt(self, train: LabelledPhotos, test: Sequence[Shard], run_id: str) -> Records:
        """The records of this measurement; UserError where the folder holds those of another."""
        config = self.config
        taken = (
            "label",
            "protocol",
            "selector",
            "validation",
            "seed",
            "image_field",
            "quality",
            "background",
        )
        fields = {
            "job": "prove",
            "prove_version": PROVE_VERSION,
            **{name: getattr(config, name) for name in taken},
            "merge": config.merged,
            "keep": list(config.ratios),
            "limit_train": config.limit_train,
            "limit_test": config.limit_test,
            "decoder": DECODER,
            "ranker": self.ranker.digest,
            "fits": digest_of(self.fits),
            "teacher": self.teacher.digest,
            **self.encoder.fields,
            "train": digest_of(list(train.contents)),
            "test": digest_of([[shard.name, shard.size] for shard in test]),
        }
        folder = absolute_url(config.out)
        stored = adopt_config(folder, fields, other={}, run_id=run_id, records=ARMS_FOLDER)
        records = Records(folder, stored["identity"], run_id=run_id)
        records.remove_temporaries()
        return records


class _Run:
    """Fits and tests what no record has yet."""

    def __init__(
        self, config: ProveConfig, measurement: Measurement, records: Records, say: Callable[[str], None]
    ) -> None:
        self._config, self._measurement, self._records, self._say = config, measurement, records, say
        self._fitted: dict[str, Fitted] = {}

    @property
    def _candidates(self) -> list[str]:
        asked = self._config.selector
        return selector_names(self._background) if asked == "auto" else [asked]

    @property
    def _background(self) -> int:
        return self._config.background or 0

    def fit_train(self, controls: Sequence[str]) -> None:
        """Fit whole images, all selectors that may be chosen, and the controls of equal tokens."""
        for arm in references(self._background):
            self._fit(arm)
        for keep in self._config.ratios:
            selectors = [selector_arm(name, keep) for name in self._candidates]
            for arm in (*selectors, *token_controls(keep, controls, self._background)):
                self._fit(arm)

    def fit_bytes(self, selector: str, controls: Sequence[str]) -> None:
        """Fit the controls of the chosen selector's bytes."""
        for keep in self._config.ratios:
            equal = self._fitted[selector_arm(selector, keep).id]
            for arm in byte_controls(keep, controls):
                self._fit(arm, equal)

    def _fit(self, arm: Arm, equal: Fitted | None = None) -> None:
        fitted = self._records.fitted(arm)
        if fitted is None:
            start = time.monotonic()
            whole = None if equal is None else self._fitted[FULL].cost
            fitted = self._measurement.fit(arm, equal=None if equal is None else equal.cost, whole=whole)
            self._records.write_fitted(fitted)
            self._say(
                f"fitted     {arm.title:18} {fitted.penalty.accuracy:.3f} on the validation split, "
                f"{time.monotonic() - start:.1f} s"
            )
        self._fitted[arm.id] = fitted

    def choose(self, shards: Sequence[str], run_id: str) -> dict[str, Any]:
        """Fix the selector that is tested, once for this folder: the best on the validation split, over all ratios."""
        ratios = self._config.ratios
        found = {
            name: sum(self._fitted[selector_arm(name, keep).id].penalty.accuracy for keep in ratios)
            / len(ratios)
            for name in self._candidates
        }
        why = "the best on the validation split" if self._config.selector == "auto" else "as asked for"
        return self._records.fix_choice(
            {
                "selector": max(found, key=lambda name: found[name]),
                "why": why,
                "candidates": found,
                "opened": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "run_id": run_id,
                "test_shards": list(shards),
            }
        )

    def test(self, selector: str, controls: Sequence[str], test: LabelledPhotos) -> list[ArmResult]:
        """Test whole images, the selector and all controls."""
        arms = references(self._background)
        for keep in self._config.ratios:
            arms += [
                selector_arm(selector, keep),
                *token_controls(keep, controls, self._background),
                *byte_controls(keep, controls),
            ]
        contents = digest_of([list(test.contents), list(test.files)])
        return [self._test(arm, test, contents) for arm in arms]

    def _test(self, arm: Arm, test: LabelledPhotos, contents: str) -> ArmResult:
        tested = self._records.tested(arm, len(test), contents)
        if tested is None:
            start = time.monotonic()
            tested = self._measurement.test(self._fitted[arm.id], self._fitted[FULL], test)
            self._records.write_tested(tested, contents)
            self._say(f"tested     {arm.title:18} {time.monotonic() - start:.1f} s")
        return tested

    def conclude(
        self, arms: list[ArmResult], choice: dict[str, Any], about: dict[str, Any], notes: list[str]
    ) -> Proof:
        """Compare what cost the same."""
        comparisons, refused = [], []
        for keep in self._config.ratios:
            here = [arm for arm in arms if arm.arm.keep == keep]
            selector = next(arm for arm in here if arm.arm.role == "selector")
            controls = [arm for arm in here if arm.arm.role == "control"]
            made, not_made = compare_all(
                selector, controls, tolerance=self._config.tolerance, seed=self._config.seed
            )
            comparisons += made
            refused += not_made
            notes += over_thumbnail(selector, arms, seed=self._config.seed)
        return Proof(
            about=about,
            choice=choice,
            validation={name: fitted.penalty.accuracy for name, fitted in self._fitted.items()},
            arms=arms,
            comparisons=comparisons,
            refused=refused,
            verdicts=judge(comparisons),
            notes=notes,
            tolerance=self._config.tolerance,
            seed=self._config.seed,
        )
