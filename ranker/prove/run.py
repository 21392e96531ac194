"""From the configuration of `patchsieve prove` to what was measured; who does the work is given.

Train images first: every arm is fitted, and a selector chosen on the validation split. Only then are the test shards
opened, and that selector and the controls tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.settings import adopt_config
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.storage import absolute_url
from patchsieve.pipeline.units import counted
from patchsieve.ranker.evaluate.images import trained_contents
from patchsieve.ranker.prove.arms import (
    FULL,
    Arm,
    Trial,
    byte_controls,
    references,
    selector_arm,
    selector_names,
    token_controls,
)
from patchsieve.ranker.prove.config import ProveConfig
from patchsieve.ranker.prove.intervals import Groups
from patchsieve.ranker.prove.measure import ArmResult, Fitted, Tested
from patchsieve.ranker.prove.parts import Inputs, read_inputs
from patchsieve.ranker.prove.photos import (
    LabelField,
    LabelledPhotos,
    class_names,
    read_photos,
    usable_test,
    validation_split,
)
from patchsieve.ranker.prove.records import ARMS_FOLDER
from patchsieve.ranker.prove.report import Proof
from patchsieve.ranker.prove.verdict import compare_all, judge, over_thumbnail
from patchsieve.ranker.prove.worker import Alone, Crew, FitOrder, Job, ProveWorker, TestSet

Hire = Callable[[Job], AbstractContextManager[Crew]]
"""Who does the work of a job."""


def alone(job: Job) -> AbstractContextManager[Crew]:
    """All of it in this process."""
    return nullcontext(Alone(ProveWorker(job, this_device())))


def prove(config: ProveConfig, say: Callable[[str], None], *, run_id: str, hire: Hire = alone) -> Proof:
    """Measure, or go on where an earlier run on this folder ended; `say` gets a line on each step.

    Raises UserError for what cannot be measured; InfrastructureError where a store fails.
    """
    inputs = read_inputs(config)
    train_shards, test_shards = expand_shards(config.shards), expand_shards(config.test)
    train = _read(inputs, train_shards, "train", config.limit_train)
    _check_merged(config, train)
    classes = class_names(train)
    chosen_on = int(validation_split(train, config.validation, config.seed).sum())
    say(f"train      {len(train)} images of {len(classes)} classes, {chosen_on} to choose on")
    job = _adopt(inputs, train, test_shards, run_id)
    with hire(job) as crew:
        run = _Run(job, crew, say)
        run.fit_first()
        choice = run.choose([shard.name for shard in test_shards])
        run.fit_rest(choice["selector"])
        test = _read(inputs, test_shards, "test", config.limit_test, config.group)
        if set(test.contents) & trained_contents(inputs.ranker):
            raise UserError(f"{config.ranker} was trained on a test shard: name others with --test")
        usable, notes = usable_test(test, train, set(classes))
        shared = _shared(config.group, usable)
        say(f"test       {len(usable)} images, to test {choice['selector']} and the controls on")
        arms = run.test(choice["selector"], usable)
    about = {
        "protocol": config.protocol,
        "encoder": inputs.encoder,
        "ranker": inputs.ranker.name,
        "seeds": len(config.drawn),
        "train_images": len(train),
        "validation_images": chosen_on,
        "test_images": len(usable),
        "classes": len(classes),
        "shared": shared,
    }
    notes = [*_notes(train, test, inputs.lacking, config), *notes]
    return run.conclude(arms, choice, about, notes, usable.groups)


def _shared(group: Sequence[str], test: LabelledPhotos) -> dict[str, int]:
    """How many there are of each kind that test images share, by field."""
    counts = {rule: len(set(kind)) for rule, kind in zip(group, test.groups, strict=True)}
    for rule, count in counts.items():
        if count < 2:
            raise UserError(f"--group {rule}: all test images have the same, there is nothing to draw anew")
    return counts


def _read(
    inputs: Inputs, shards: Sequence[Shard], split: str, limit: int | None, group: Sequence[str] = ()
) -> LabelledPhotos:
    """The labelled images of a split, with what they share."""
    config, ranker = inputs.config, inputs.ranker.config
    return read_photos(
        shards,
        split,
        LabelField(config.label, config.merged),
        grid=ranker.grid,
        patch_size=ranker.patch_size,
        image_field=config.image_field,
        limit=limit,
        unsorted=config.unsorted,
        groups=[LabelField(rule, {}) for rule in group],
    )


def _adopt(inputs: Inputs, train: LabelledPhotos, test: Sequence[Shard], run_id: str) -> Job:
    """The job in its folder; UserError where that holds another measurement."""
    folder = absolute_url(inputs.config.out)
    fields = inputs.identity(train, test)
    stored = adopt_config(folder, fields, other={}, run_id=run_id, records=ARMS_FOLDER)
    job = Job(inputs=inputs, train=train, folder=folder, identity=stored["identity"], run_id=run_id)
    job.records().remove_temporaries()
    return job


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
        f"{counted(photos.unlabelled, f'{photos.split} sample')} without a label in {config.label}: left out"
        for photos in (train, test)
        if photos.unlabelled
    ]
    notes += [
        f"{counted(photos.unreadable, f'{photos.split} sample')} without an image that can be read: left out"
        for photos in (train, test)
        if photos.unreadable
    ]
    if lacking:
        notes.append(f"{' and '.join(lacking)} are no arms: {config.ranker} was stored without their fits")
    return notes


class _Run:
    """Has fitted and tested what no record has yet."""

    def __init__(self, job: Job, crew: Crew, say: Callable[[str], None]) -> None:
        self._job, self._crew, self._say = job, crew, say
        self._config, self._records = job.inputs.config, job.records()
        self._controls = job.inputs.controls
        self._fitted: dict[str, Fitted] = {}

    @property
    def _candidates(self) -> list[str]:
        asked = self._config.selector
        return selector_names(self._background) if asked == "auto" else [asked]

    @property
    def _background(self) -> int:
        return self._config.background or 0

    def fit_first(self) -> None:
        """With the first seed fit whole images, all selectors that may be chosen, and the controls of equal tokens."""
        arms = references(self._background)
        for keep in self._config.ratios:
            arms += [selector_arm(name, keep) for name in self._candidates]
            arms += token_controls(keep, self._controls, self._background)
        self._fit([FitOrder(trial=Trial(arm, self._config.drawn[0])) for arm in arms])

    def fit_rest(self, selector: str) -> None:
        """Fit the chosen selector and all controls with every seed, among them those of the selector's bytes."""
        first, *others = self._config.drawn
        orders = [FitOrder(trial=Trial(arm, seed)) for seed in others for arm in self._arms(selector)]
        whole = self._fitted[Trial(Arm(FULL, "reference"), first).id].cost
        for keep in self._config.ratios:
            equal = self._fitted[Trial(selector_arm(selector, keep), first).id].cost
            orders += [
                FitOrder(trial=Trial(arm, seed), equal=equal, whole=whole)
                for seed in self._config.drawn
                for arm in byte_controls(keep, self._controls)
            ]
        self._fit(orders)

    def _arms(self, selector: str) -> list[Arm]:
        """What is tested, but for the controls of bytes."""
        arms = references(self._background)
        for keep in self._config.ratios:
            arms.append(selector_arm(selector, keep))
            arms += token_controls(keep, self._controls, self._background)
        return arms

    def _fit(self, orders: Sequence[FitOrder]) -> None:
        found = {order.trial.id: self._records.fitted(order.trial) for order in orders}
        for fitted, seconds in self._crew.fit([one for one in orders if found[one.trial.id] is None]):
            found[fitted.trial.id] = fitted
            self._say(
                f"fitted     {fitted.trial.title:18} {fitted.validation:.3f} on the validation split, {seconds:.1f} s"
            )
        self._fitted.update({key: fitted for key, fitted in found.items() if fitted is not None})

    def choose(self, shards: Sequence[str]) -> dict[str, Any]:
        """Fix the selector that is tested, once for this folder: the best on the validation split, over all ratios."""
        ratios, seed = self._config.ratios, self._config.drawn[0]
        found = {
            name: sum(self._fitted[Trial(selector_arm(name, keep), seed).id].validation for keep in ratios)
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
                "run_id": self._job.run_id,
                "test_shards": list(shards),
            }
        )

    def test(self, selector: str, photos: LabelledPhotos) -> list[ArmResult]:
        """Test whole images, the selector and all controls."""
        arms = self._arms(selector)
        for keep in self._config.ratios:
            last = max(place for place, arm in enumerate(arms) if arm.keep == keep)
            arms[last + 1 : last + 1] = byte_controls(keep, self._controls)
        test = TestSet(photos=photos, contents=digest_of([list(photos.contents), list(photos.files)]))
        trials = [Trial(arm, seed) for seed in self._config.drawn for arm in arms]
        tested: dict[str, Tested] = {}
        for trial in trials:
            if (found := self._records.tested(trial, len(photos), test.contents)) is not None:
                tested[trial.id] = found
        left = [self._fitted[trial.id] for trial in trials if trial.id not in tested]
        for one, seconds in self._crew.test(left, test):
            tested[one.fitted.trial.id] = one
            self._say(f"tested     {one.fitted.trial.title:18} {seconds:.1f} s")
        return [ArmResult.of([tested[Trial(arm, seed).id] for seed in self._config.drawn]) for arm in arms]

    def conclude(
        self,
        arms: list[ArmResult],
        choice: dict[str, Any],
        about: dict[str, Any],
        notes: list[str],
        groups: Groups,
    ) -> Proof:
        """Compare what cost the same."""
        comparisons, refused = [], []
        seed = self._config.seed
        for keep in self._config.ratios:
            here = [arm for arm in arms if arm.arm.keep == keep]
            selector = next(arm for arm in here if arm.arm.role == "selector")
            controls = [arm for arm in here if arm.arm.role == "control"]
            made, not_made = compare_all(
                selector, controls, tolerance=self._config.tolerance, seed=seed, groups=groups
            )
            comparisons += made
            refused += not_made
            notes += over_thumbnail(selector, arms, seed=seed, groups=groups)
        return Proof(
            about=about,
            choice=choice,
            validation={name: fitted.validation for name, fitted in self._fitted.items()},
            arms=arms,
            comparisons=comparisons,
            refused=refused,
            verdicts=judge(comparisons),
            notes=notes,
            groups=groups,
            tolerance=self._config.tolerance,
            seed=seed,
        )
