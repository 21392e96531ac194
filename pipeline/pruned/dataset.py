"""Pruned datasets as training reads them: in a torch DataLoader, in a webdataset pipeline, in Ray Data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import ContentError, DamagedFileError, UserError
from patchsieve.pipeline.pruned.format import MAX_SIDE
from patchsieve.pipeline.pruned.progress import Place, Progress, Reader, shares, turned
from patchsieve.pipeline.pruned.sample import PrunedSample
from patchsieve.pipeline.pruned.sources import (
    IndexedSource,
    OnlineSource,
    PackedSource,
    Select,
    Source,
    Transform,
    decode_fields,
)
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.units import counted

Handler = Callable[[Exception], bool]
"""What to do about a sample that cannot be read: True skips it, False ends the reading; it may raise."""


def reraise(error: Exception) -> bool:
    """The default handler: a sample that cannot be read ends the reading."""
    raise error


class PrunedDataset(IterableDataset[PrunedSample]):
    """The samples of pruned shards, each a `PrunedSample`, in shard order.

        PrunedDataset("pruned/shards/*.tar")                       # what `prune` packed
        PrunedDataset("photos/*.tar", index="pruned")              # originals, and the output of `--format index`
        PrunedDataset("photos/*.tar", select=f, transform=g)       # originals, patches chosen after augmentation

    A torch IterableDataset: shards are divided among nodes and then among the workers of a DataLoader as webdataset
    divides them, so that each sample comes once; give the loader a `collate_fn`. `compose`, `shuffle`, `map` and
    `batched` go on as a webdataset pipeline. Every archive is read through this project's storage and checked to its
    end: `pipe:` URLs are refused, and one that is cut short is told.

    `decoders` turn fields (by extension) from bytes into values, as `{"cls": int, "json": json.loads}`. `handler` is
    asked about data that cannot be read, as in webdataset (`webdataset.warn_and_continue` skips it); the default
    raises. `shuffle_shards` draws a new order of shards for each epoch of `set_epoch`.

    Where it is, exact to the sample, `state_dict` tells and `load_state_dict` takes, with other numbers of workers too.
    Beside workers and buffers, which read ahead, tell it what has arrived:

        loader = DataLoader(dataset, 64, num_workers=8, collate_fn=WithPlaces(collate_naflex))
        for batch, places in loader:
            ...
            dataset.advance(places)
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        index: str | None = None,
        select: Select | None = None,
        transform: Transform | None = None,
        size: int | None = None,
        background: int | None = None,
        root: str | None = None,
        image_field: str = IMAGE_FIELDS,
        unsorted: bool = False,
        decoders: Mapping[str, Callable[[bytes], Any]] | None = None,
        handler: Handler = reraise,
        shuffle_shards: bool = False,
        seed: int = 0,
    ) -> None:
        """Find the shards: `urls` as every command takes them, `root` as given to `prune`.

        `index`: an output of `prune --format index`. `select`: uint8 image `[3, S, S]` -> bool keep mask `[L]`, for
        instance `ranker.select.online.keep_topk`. `transform`: uint8 image `[3, H, W]` -> uint8 `[3, S, S]`, by
        default the centre crop. `size`: side of the crop in pixels, by default the index's, or 224 with `select`.
        `background`: with `select`, side in pixels of a thumbnail of the whole crop that goes with each sample.
        `image_field`: where original shards hold their images; `unsorted`: their samples are collected, as `prune
        --unsorted` does. Raises UserError for shards that are not there and
        settings that exclude each other.
        """
        super().__init__()
        if index is not None and select is not None:
            raise UserError("index and select are two ways to choose patches: give one of them")
        if transform is not None and select is None:
            raise UserError("a transform needs select: the patches of other shards are chosen already")
        if size is not None and (transform is not None or (index is None and select is None)):
            raise UserError("size is that of a crop made here: packed shards and a transform have their own")
        if size is not None and not 1 <= size <= MAX_SIDE:
            raise UserError(f"size is {size} pixels, must be from 1 to {MAX_SIDE}")
        if background is not None and select is None:
            raise UserError("background goes with select: pruned shards and an index say which one they have")
        if background is not None and not 1 <= background <= MAX_SIDE:
            raise UserError(f"background is {background} pixels, must be from 1 to {MAX_SIDE}")
        self.shards = expand_shards([urls] if isinstance(urls, str) else urls, root=root)
        self._source: Source = PackedSource()
        if index is not None:
            folder = storage.join(storage.absolute_url(index), "index")
            self._source = IndexedSource(folder=folder, size=size, image_field=image_field)
        elif select is not None:
            self._source = OnlineSource(
                select=select,
                transform=transform,
                size=224 if size is None else size,
                background=background,
                image_field=image_field,
            )
        self._unsorted = unsorted
        self._decoders = dict(decoders or {})
        self._handler = handler
        self._shuffle, self._seed = shuffle_shards, seed
        # Shared, so that workers that live on see the next epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        # What was loaded, and decides what is left out; what was given out here; what has been told to have arrived.
        self._resumed = Progress()
        self._given, self._arrived = Progress(), Progress()
        self._told = False

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is read next; with `shuffle_shards`, each has an order of its own.

        Who resumes says it for every epoch: what has arrived is that of one.
        """
        self._epoch.fill_(epoch)
        self._begin(epoch)

    def advance(self, places: Iterable[Place]) -> None:
        """Samples have arrived: their places, as `WithPlaces` gives them beside a batch."""
        self._told = True
        for place in places:
            self._arrived.add(place)

    def state_dict(self) -> dict[str, Any]:
        """Where the reading is: plain values. What `advance` was told counts, else what this object gave out itself.

        Of several ranks, each has its own: `merge_states` makes one of them, for other numbers of ranks or workers.
        """
        return (self._arrived if self._told else self._given).state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the reading was: call it before the dataset is iterated, or given to a loader.

        With as many ranks and workers the rest comes in the order that it would have had. In a worker of a loader it is
        that worker's own state, as torchdata's StatefulDataLoader keeps and loads them. Raises UserError for what is no
        state, and for the state of other shards.
        """
        progress = Progress.from_state(state)
        if strange := progress.shards - {shard.name for shard in self.shards}:
            raise UserError(
                f"this is the state of other shards: {min(strange)} is none of these {len(self.shards)}; read those "
                "that it was made of, by the same names (root)"
            )
        if get_worker_info() is not None:
            progress.keep_workers()
        self._epoch.fill_(progress.epoch)
        self._resumed = progress
        self._given, self._arrived = Progress.from_state(state), Progress.from_state(state)

    def _begin(self, epoch: int) -> None:
        if self._resumed.epoch != epoch:
            self._resumed = Progress(epoch)
        if self._given.epoch != epoch:
            self._given, self._arrived, self._told = Progress(epoch), Progress(epoch), False

    def __iter__(self) -> Iterator[PrunedSample]:
        self._begin(int(self._epoch))
        reader = turned(self._reader(), self._resumed)
        for shard in self._own_shards():
            for number, (sample, last) in enumerate(_with_last(self._read(shard))):
                if not self._resumed.has(shard.name, number):
                    total = number + 1 if last and self._goes_on else 0
                    place = Place(shard.name, number, total, reader)
                    self._given.add(place)
                    yield dataclasses.replace(sample, place=place)
            if not self._goes_on:
                return

    def compose(self, *stages: Any) -> Any:
        """A webdataset pipeline that begins with these samples and goes on with `stages`."""
        from webdataset.compat import FluidWrapper

        return FluidWrapper(self).compose(*stages)

    def shuffle(self, size: int, **options: Any) -> Any:
        """A webdataset pipeline of the samples, shuffled in a buffer of `size`."""
        return self.compose().shuffle(size, **options)

    def map(self, function: Callable[[PrunedSample], Any]) -> Any:
        """A webdataset pipeline of `function` of every sample."""
        return self.compose().map(function)

    def batched(
        self, size: int, collate: Callable[[list[PrunedSample]], Any], *, partial: bool = True
    ) -> Any:
        """A webdataset pipeline of batches; `partial`: also a last one that is not full."""
        return self.compose().batched(size, collation_fn=collate, partial=partial)

    def _reader(self) -> Reader:
        """Who reads here: a worker of a loader, or the process itself."""
        from webdataset.utils import pytorch_worker_info

        rank, ranks, worker, workers = pytorch_worker_info()
        return Reader(rank, ranks, worker, workers)

    def _own_shards(self) -> list[Shard]:
        """This worker's share of the shards."""
        shards = self.shards
        if self._shuffle:
            order = KeyedRandom(self._seed, "", "shards", int(self._epoch)).permutation(len(shards))
            shards = [shards[number] for number in order]
        reader = self._reader()
        if len(shards) < reader.ranks:
            raise UserError(
                f"{counted(len(shards), 'shard')} for {counted(reader.ranks, 'rank')}: some would get no sample; "
                "write smaller shards"
            )
        return shares(reader, shards, self._resumed, lambda shard: shard.name)

    def _read(self, shard: Shard) -> Iterator[PrunedSample]:
        """The samples of a shard; `_goes_on` then tells whether to go on with the next one."""
        self._goes_on = True
        try:
            read = self._source.open(shard)
        except DamagedFileError as error:
            self._goes_on = self._handler(error)
            return
        with ShardReader(shard, unsorted=self._unsorted) as reader:
            for item in reader:
                if isinstance(item, Fault) and item.sample_key is None and item.stage == "sample":
                    continue  # it belongs to no sample
                try:
                    if isinstance(item, Fault):
                        raise ContentError(item.reason)
                    sample = read(item)
                    if sample is not None:
                        sample = decode_fields(sample, self._decoders)
                except ContentError as error:
                    if not self._handler(_located(shard, item, error)):
                        self._goes_on = False
                        return
                    continue
                if sample is not None:
                    yield sample


def _with_last(samples: Iterator[PrunedSample]) -> Iterator[tuple[PrunedSample, bool]]:
    """Each sample, and whether it is the last one; what reading the next one raises comes after it."""
    waiting = next(samples, None)
    while waiting is not None:
        try:
            following = next(samples, None)
        except Exception:
            yield waiting, False
            raise
        yield waiting, following is None
        waiting = following


def _located(shard: Shard, item: Sample | Fault, error: ContentError) -> ContentError:
    """The error with the place where it arose."""
    what = item.key if isinstance(item, Sample) else item.sample_key or item.member
    located = ContentError(": ".join(part for part in (shard.name, what, str(error)) if part))
    located.__cause__ = error.__cause__
    return located
