"""What a prune run is asked to do, checked against ranker, inputs and output before anything starts."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.pruned.format import MAX_SIDE
from patchsieve.pipeline.pruned.index import MAX_POSITIONS, SHARDS_FOLDER
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.shards.reader import image_fields_of
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.ranker.prune.config import DEFAULT_KEEP, DEFAULT_MASS, DEFAULT_QUALITY, PruneConfig
from patchsieve.ranker.prune.sample import PruneSpec
from patchsieve.ranker.select import regions, selection
from patchsieve.ranker.select.image_choice import ImageChoice
from patchsieve.ranker.select.image_tables import find_image_tables
from patchsieve.ranker.select.patch_scorer import PatchSource, needs_teacher, open_patch_source
from patchsieve.ranker.select.selector import Selector

PRUNE_VERSION = 2
"""Raised only when the same settings give other shards. Part of the identity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """Shards, ranker and settings of a run.

    `paths`: where each shard's tar goes below OUT, by shard id; `choice`: which images stay, None for all.
    """

    config: PruneConfig
    shards: Sequence[Shard]
    paths: Mapping[str, str]
    source: PatchSource
    selector: Selector
    spec: PruneSpec
    choice: ImageChoice | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Everything that can change a pruned shard, by name: what the identity hashes and `config.json` compares."""
        return {
            "job": "prune",
            "prune_version": PRUNE_VERSION,
            **self.source.fields,
            **self.selector.fields,
            **self.spec.fields,
            **({} if self.choice is None else self.choice.fields),
        }

    @property
    def needs_plan(self) -> bool:
        """Whether a first pass over the dataset decides what stays."""
        return self.selector.target is not None or self.choice is not None

    @property
    def survey_fields(self) -> dict[str, Any]:
        """Everything that can change the scores of the first pass of a budget."""
        images = {} if self.choice is None else self.choice.fields
        return {**self._ranked_fields, **images}

    @property
    def asked(self) -> dict[str, Any]:
        """What a plan depends on: what is scored, and how much may stay."""
        selected = {name: value for name, value in self.selector.fields.items() if name != "select_threshold"}
        images = {} if self.choice is None else self.choice.asked
        return {**self._ranked_fields, **selected, **images}

    @property
    def _ranked_fields(self) -> dict[str, Any]:
        spec = self.spec.fields
        names = ("image_field", "unsorted", "crop", "grid", "patch_size", "decoder")
        read = {name: spec[name] for name in names if name in spec}
        return {"job": "prune survey", "prune_version": PRUNE_VERSION, **self.source.fields, **read}

    @property
    def tar_folders(self) -> list[str]:
        """Every folder below OUT that a tar goes to."""
        return sorted({path.rpartition("/")[0] for path in self.paths.values()} if self.spec.codec else ())

    def with_precision(self, precision: Precision) -> PruneRequest:
        """The request with the precision that its ranker computes in."""
        return dataclasses.replace(self, source=dataclasses.replace(self.source, precision=precision))

    def with_thresholds(self, *, patches: float | None = None, images: float | None = None) -> PruneRequest:
        """The request with what its plan found: the log mass of a patch that stays, the score of an image that does."""
        selector, choice = self.selector, self.choice
        if patches is not None:
            selector = dataclasses.replace(selector, threshold=patches)
        if images is not None:
            assert choice is not None
            choice = dataclasses.replace(choice, threshold=images)
        return dataclasses.replace(self, selector=selector, choice=choice)


def make_prune_request(config: PruneConfig) -> PruneRequest:
    """Find shards and ranker; UserError where the combination cannot work."""
    # Of a cluster that was there before, workers stand in other folders.
    config = dataclasses.replace(config, out=storage.absolute_url(config.out))
    diagnostic = config.dry_run and not needs_teacher(config.ranker)
    teacher = None if diagnostic else config.teacher
    source = open_patch_source(config.ranker, fits=config.fits, teacher=teacher, seed=config.seed or 0)
    if config.precision != "auto":
        if source.ranker is None:
            raise UserError(f"--precision does nothing with {source.name}: leave it out")
        source = dataclasses.replace(source, precision=config.precision)
    positions = source.grid**2
    if positions > MAX_POSITIONS:
        raise UserError(f"{source.name} ranks {positions} patches, an index numbers up to {MAX_POSITIONS}")
    spec = _spec_of(config, source)
    selector = make_selector(config, positions=positions, temperature=source.temperature, coarse=spec.coarse)
    shards = expand_shards(config.shards, root=config.root)[: config.limit_shards]
    paths = output_paths(shards, rooted=config.root is not None)
    _check_places(shards, config.out)
    part = parse_part(config.part)
    if part is not None:
        shards = [shard for shard in shards if part.takes(shard.id)]
    choice = None
    if config.table:
        tables = find_image_tables(config.table, shards)
        choice = ImageChoice(tables=tables, keep=config.keep_images, threshold=config.min_score)
    return PruneRequest(
        config=config,
        shards=shards,
        paths=paths,
        source=source,
        selector=selector,
        spec=spec,
        choice=choice,
    )


def _spec_of(config: PruneConfig, source: PatchSource) -> PruneSpec:
    size = source.image_size if config.size is None else config.size
    if size % source.image_size or size > MAX_SIDE:
        raise UserError(
            f"--size {size} must be a multiple of {source.image_size}, the size that {source.name} ranks, up to "
            f"{MAX_SIDE // source.image_size * source.image_size}"
        )
    if config.background is not None and (config.background % source.patch_size or config.background >= size):
        raise UserError(
            f"--background {config.background} must be a multiple of {source.patch_size}, the patch of {source.name}, "
            f"below {size}, the size of the crop"
        )
    fields = ";".join(image_fields_of(config.image_field))
    if not fields:
        raise UserError(f"--image-field {config.image_field!r} names no field")
    codec = None
    if config.format != "index":
        codec = ImageCodec(config.codec, DEFAULT_QUALITY if config.quality is None else config.quality)
    return PruneSpec(
        image_field=fields,
        crop=config.crop,
        grid=source.grid,
        patch_size=source.patch_size,
        size=size,
        format=config.format,
        codec=codec,
        drop_bad=config.drop_bad,
        background=config.background,
        unsorted=config.unsorted,
    )


_LONGEST_PART = 255
"""Bytes of a name that file systems take."""


def output_paths(shards: Sequence[Shard], *, rooted: bool) -> dict[str, str]:
    """Where each tar goes below OUT, by shard id: under its file name, or its path below `--root`.

    Raises UserError for two shards with one place, also where only the case of letters differs.
    """
    taken: dict[str, Shard] = {}
    paths = {}
    for shard in shards:
        name = shard.name if rooted else storage.split_name(shard.name)[1]
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise UserError(f"{shard.name}: its name cannot be that of an output, rename it")
        if any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
            raise UserError(
                f"{shard.name}: no file can have a name of more than {_LONGEST_PART} bytes, rename it"
            )
        path = f"{SHARDS_FOLDER}/{name}"
        other = taken.setdefault(path.casefold(), shard)
        if other is not shard:
            raise UserError(
                f"{storage.redact(other.url)} and {storage.redact(shard.url)} would both be written to {path}: "
                "prune them to different folders, or name them by --root"
            )
        paths[shard.id] = path
    return paths


def _check_places(shards: Sequence[Shard], out: str) -> None:
    """Refuse outputs in a folder of inputs, and inputs in the output: the one could be taken for the other."""
    folder = _place(out)
    for inputs in sorted({storage.split_name(_place(shard.url))[0] for shard in shards}):
        if _is_within(folder, inputs):
            raise UserError(
                f"--out {storage.redact(out)} lies in {inputs}, a folder of shards to prune: choose another"
            )
        if _is_within(inputs, folder):
            raise UserError(f"{inputs}, a folder of shards to prune, lies in --out {storage.redact(out)}")


def _place(url: str) -> str:
    """One spelling for one place: links of a local path are followed."""
    absolute = storage.absolute_url(url)
    if storage.is_local(absolute):
        return os.path.realpath(storage.local_path(absolute))
    return storage.canonical_url(absolute)


def _is_within(place: str, folder: str) -> bool:
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")


def make_selector(
    config: PruneConfig, *, positions: int, temperature: float | None, coarse: int = 0
) -> Selector:
    """The selection of a configuration, for images of L = `positions`; a budget still lacks its threshold.

    `temperature`: the ranker's own, None where it has none. `coarse`: patches' worth of each image's thumbnail, which
    counts and budgets pay for. Raises UserError where a temperature is needed, and for numbers that do not fit.
    """
    select = config.select
    compactness = regions.DEFAULT_COMPACTNESS if config.compactness is None else config.compactness
    selector = Selector(
        way="budget" if config.amount == "budget" and select == "topk" else select,
        amount=config.amount,
        positions=positions,
        **({} if config.amount == "count" else _softmax_of(config, positions, temperature)),
        windows=(config.windows or 1) if select == "window" else None,
        compactness=regions.checked_compactness(compactness) if select == "region" else None,
        rule=(config.cluster_rule or "ours") if select == "cluster" else None,
        seed=(config.seed or 0) if select == "random" else None,
        coarse=coarse or None,
    )
    return selector.at(asked_ratio(config))


def asked_ratio(config: PruneConfig) -> float:
    """The share that decides how much stays: `--target-ratio`, `--mass` or `--keep`."""
    if config.target_ratio is not None:
        return config.target_ratio
    given, default = (config.mass, DEFAULT_MASS) if config.amount == "mass" else (config.keep, DEFAULT_KEEP)
    return default if given is None else given


def _softmax_of(config: PruneConfig, positions: int, temperature: float | None) -> dict[str, Any]:
    """The temperature and bounds of a selector that weighs patches by a softmax."""
    heat = temperature if config.temperature is None else config.temperature
    if heat is None:
        said = "--select nucleus" if config.amount == "mass" else "--target-ratio"
        raise UserError(
            f"{said} weighs patches by a softmax, and {config.ranker} has no temperature: add --temperature"
        )
    if not 0 < heat < math.inf:
        raise UserError(f"--temperature is {heat}, must be a number above 0")
    floor, ceiling = selection.checked_bounds(
        1 if config.floor is None else config.floor, config.ceiling, positions
    )
    return {"temperature": heat, "floor": floor, "ceiling": ceiling}
