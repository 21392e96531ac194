"""Reading that stops anywhere and goes on: no sample lost or doubled, and in the same order where nothing changed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.pruned import PrunedDataset, WithPlaces, merge_states
from patchsieve.pipeline.pruned.progress import Place, Progress, Reader, shares
from patchsieve.pipeline.pruned.sample import PrunedSample
from patchsieve.pipeline.shards.specs import expand_shards
from tests.pipeline.pruned.pruned_shards import make_photos, write_packed

pytestmark = [pytest.mark.forks, pytest.mark.filterwarnings("ignore:This DataLoader will create")]
SIZES = (5, 1, 7, 3, 4, 6, 2)
BATCH = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packed")
    for number, size in enumerate(SIZES):
        write_packed(made / f"p-{number:03d}.tar", make_photos(size, number, keep=2))
    return made


def key_of(samples: list[PrunedSample]) -> list[str]:
    return [sample.key for sample in samples]


class Numbers(PrunedDataset):
    """Samples without their pixels, read by whoever a test says reads."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(str(folder), **options)
        self.reader = Reader()

    def _reader(self) -> Reader:
        return self.reader

    def _read(self, shard: Any) -> Iterator[PrunedSample]:
        self._goes_on = True
        for number in range(SIZES[int(shard.name.rpartition("-")[2].removesuffix(".tar"))]):
            yield sample_of(shard.name, number)


def sample_of(shard: str, number: int) -> PrunedSample:
    nothing = torch.empty(0)
    return PrunedSample(
        shard=shard,
        key=f"{shard} {number}",
        patches=nothing,
        positions=nothing,
        grid=1,
        block=1,
        original_size=None,
        crop=None,
        fields={},
    )


def loaded(dataset: Numbers, workers: int, rank: int = 0, ranks: int = 1) -> Iterator[list[PrunedSample]]:
    """Batches in the order in which a DataLoader gives them: of each worker in turn, while it has some."""

    def batches(worker: int) -> Iterator[list[PrunedSample]]:
        copy = Numbers.__new__(Numbers)
        copy.__dict__ |= dataset.__dict__
        copy._given = Progress(dataset._given.epoch)
        copy.reader = Reader(rank, ranks, worker, workers)
        batch: list[PrunedSample] = []
        for sample in copy:
            batch.append(sample)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    turns = [batches(worker) for worker in range(workers)]
    while turns:
        for turn in list(turns):
            batch = next(turn, None)
            if batch is None:
                turns.remove(turn)
            else:
                yield batch


def take(dataset: Numbers, count: int, workers: int, **reader: int) -> list[str]:
    """Keys of so many batches, which have arrived."""
    keys: list[str] = []
    for _, batch in zip(range(count), loaded(dataset, workers, **reader), strict=False):
        keys += key_of(batch)
        dataset.advance([sample.place for sample in batch if sample.place])
    return keys


def resumed(dataset: Numbers, folder: Path) -> Numbers:
    """Another process, after a checkpoint."""
    again = Numbers(folder, shuffle_shards=True)
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    return again


def begun(folder: Path, epoch: int) -> Numbers:
    dataset = Numbers(folder, shuffle_shards=True)
    dataset.set_epoch(epoch)
    return dataset


def test_stopped_anywhere_and_resumed_twice(folder: Path) -> None:
    rng = random.Random(5)
    for epoch in range(100):
        workers = rng.choice([1, 2, 3])
        whole = take(begun(folder, epoch), 99, workers)
        assert len(whole) == sum(SIZES)
        cuts = [rng.randrange(8) for _ in range(2)]
        # With as many workers: the same order.
        dataset, keys = begun(folder, epoch), list[str]()
        for cut in cuts:
            keys += take(dataset, cut, workers)
            dataset = resumed(dataset, folder)
        assert keys + take(dataset, 99, workers) == whole
        # With others, two and then three: every sample once.
        dataset, keys = begun(folder, epoch), list[str]()
        for cut, some in zip(cuts, (2, 3), strict=True):
            keys += take(dataset, cut, some)
            dataset = resumed(dataset, folder)
        keys += take(dataset, 99, 3)
        assert sorted(keys) == sorted(whole)
        assert len(set(keys)) == len(keys)


def test_other_numbers_of_ranks_take_the_merged_state(folder: Path) -> None:
    rng = random.Random(6)
    for epoch in range(30):
        ranks = [begun(folder, epoch) for _ in range(2)]
        keys = [
            key
            for rank, one in enumerate(ranks)
            for key in take(one, rng.randrange(4), 2, rank=rank, ranks=2)
        ]
        state = merge_states([one.state_dict() for one in ranks])
        later = [Numbers(folder, shuffle_shards=True) for _ in range(3)]
        for one in later:
            one.load_state_dict(state)
        for rank, one in enumerate(later):
            keys += take(one, rng.randrange(3), 2, rank=rank, ranks=3)
        # And once more, with as many: each takes its own.
        for rank, one in enumerate(later):
            keys += take(resumed(one, folder), 99, 2, rank=rank, ranks=3)
        assert sorted(keys) == sorted(take(begun(folder, epoch), 99, 1))


def test_the_state_of_one_rank_is_not_that_of_others(folder: Path) -> None:
    one = begun(folder, 0)
    take(one, 1, 1, rank=1, ranks=2)
    for rank, ranks in ((0, 2), (0, 1), (1, 3)):
        with pytest.raises(UserError, match=r"the state of rank 1 of 2, .*merge_states"):
            take(resumed(one, folder), 1, 1, rank=rank, ranks=ranks)


def test_a_real_loader_goes_on_where_it_was(folder: Path) -> None:
    def loader(dataset: PrunedDataset) -> DataLoader[Any]:
        return DataLoader(dataset, BATCH, num_workers=2, collate_fn=WithPlaces(key_of))

    whole = [key for keys, _ in loader(PrunedDataset(str(folder))) for key in keys]
    dataset = PrunedDataset(str(folder))
    found: list[str] = []
    for number, (keys, places) in enumerate(loader(dataset)):
        found += keys
        dataset.advance(places)
        if number == 4:
            break
    again = PrunedDataset(str(folder))
    again.load_state_dict(dataset.state_dict())
    assert found + [key for keys, _ in loader(again) for key in keys] == whole


def this_worker() -> tuple[int, PrunedDataset]:
    """In a worker of a loader: its number, and its copy of the data set."""
    info = get_worker_info()
    assert info is not None
    dataset = info.dataset
    assert isinstance(dataset, PrunedDataset)
    return info.id, dataset


def with_own_state(samples: list[PrunedSample]) -> tuple[int, list[str], dict[str, Any]]:
    """A collate as StatefulDataLoader wraps it: worker, keys, and the state of the worker's own copy."""
    worker, dataset = this_worker()
    return worker, key_of(samples), dataset.state_dict()


class LoadsInWorkers:
    """A `worker_init_fn` that gives each worker's copy its own state, as StatefulDataLoader does."""

    def __init__(self, states: dict[int, dict[str, Any]]) -> None:
        self._states = states

    def __call__(self, worker: int) -> None:
        if worker in self._states:
            this_worker()[1].load_state_dict(self._states[worker])


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_each_worker_goes_on_from_its_own_state(folder: Path, stop: int) -> None:
    def batches(states: dict[int, dict[str, Any]]) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
        dataset = PrunedDataset(str(folder))
        init = LoadsInWorkers(states)
        return iter(DataLoader(dataset, BATCH, num_workers=2, collate_fn=with_own_state, worker_init_fn=init))

    whole: dict[int, list[list[str]]] = {0: [], 1: []}
    for worker, keys, _ in batches({}):
        whole[worker].append(keys)
    found: dict[int, list[list[str]]] = {0: [], 1: []}
    states: dict[int, dict[str, Any]] = {}
    for worker, keys, state in itertools.islice(batches({}), stop):
        found[worker].append(keys)
        states[worker] = state
    for worker, keys, _ in batches(states):
        found[worker].append(keys)
    assert found == whole


def test_without_workers_it_knows_by_itself(folder: Path) -> None:
    dataset = PrunedDataset(str(folder))
    reading = iter(dataset)
    found = [next(reading).key for _ in range(7)]
    again = PrunedDataset(str(folder))
    again.load_state_dict(dataset.state_dict())
    rest = [sample.key for sample in again]
    assert found + rest == [sample.key for sample in PrunedDataset(str(folder))]
    # The next epoch is whole.
    again.set_epoch(1)
    assert len(list(again)) == sum(SIZES)


def test_what_a_buffer_has_mixed_is_exact_too(folder: Path) -> None:
    dataset = PrunedDataset(str(folder))
    found = [sample for _, sample in zip(range(9), dataset.shuffle(20, seed=2), strict=False)]
    dataset.advance(sample.place for sample in found)
    again = PrunedDataset(str(folder))
    again.load_state_dict(dataset.state_dict())
    keys = [(sample.shard, sample.key) for sample in (*found, *again)]
    assert len(keys) == len(set(keys)) == sum(SIZES)


def test_finished_shards_are_not_read_again(folder: Path) -> None:
    shards = expand_shards([str(folder)])
    progress = Progress()
    for number in random.Random(1).sample(range(5), 5):
        progress.add(Place(shards[0].name, number, 5 * (number == 4), Reader()))
    dataset = PrunedDataset(str(folder))
    dataset.load_state_dict(progress.state())
    assert shards[0] not in dataset._own_shards()
    assert progress.state()["arrived"][shards[0].name] == [0, 5]


def test_what_comes_before_damage_is_given_out_first(folder: Path, tmp_path: Path) -> None:
    path = write_packed(tmp_path / "a.tar", make_photos(3))
    path.write_bytes(path.read_bytes()[:-1500])
    found: list[PrunedSample] = []
    with pytest.raises(ContentError):
        found.extend(PrunedDataset(str(path)))
    assert found
    assert not any(sample.place.total for sample in found if sample.place)


@pytest.mark.parametrize("arrived", list(itertools.product(range(3), repeat=2)))
def test_after_merging_ranks_go_on_with_other_numbers_of_workers(arrived: tuple[int, int]) -> None:
    shards = [f"s{number}" for number in range(4)]
    whole = merge_states([Progress().state()])
    read: list[str] = []
    states = []
    for rank, count in enumerate(arrived):
        progress = Progress.from_state(whole)
        reader = Reader(rank, 2)
        for shard in shares(reader, shards, progress, str)[:count]:
            progress.add(Place(shard, 0, 1, reader))
            read.append(shard)
        states.append(progress.state())
    for rank, worker in itertools.product(range(2), repeat=2):
        read += shares(Reader(rank, 2, worker, 2), shards, Progress.from_state(states[rank]), str)
    assert sorted(read) == shards


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 1},
        *(
            {**Progress().state(), **changes}
            for changes in (
                {"arrived": 5},
                # Samples that have not arrived would be left out.
                {"arrived": {"p": [5]}},
                {"arrived": {"p": [0, 5, 5, 7]}},
                {"arrived": {"p": [3, 1]}},
                {"without": ["p"]},
                {"merged": ["p"]},
                {"merged": True},
                {"epoch": -1},
                {"epoch": 1e30},
                {"last": [0, 0, 0, 1]},
                {"last": [0, 1, 3, 2]},
            )
        ),
    ],
)
def test_what_is_no_state_is_told(folder: Path, state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no state of a PrunedDataset"):
        PrunedDataset(str(folder)).load_state_dict(state)


def test_the_state_of_other_shards_is_told(folder: Path, tmp_path: Path) -> None:
    dataset = PrunedDataset(str(folder))
    next(iter(dataset))
    state = dataset.state_dict()
    other = PrunedDataset(str(write_packed(tmp_path / "other.tar", make_photos(1))))
    with pytest.raises(
        UserError, match=r"of other shards: .*p-000.tar is none of these 1; .* same names \(root\)"
    ):
        other.load_state_dict(state)
    # Shards may come to those that are there.
    more = PrunedDataset([str(folder), str(tmp_path / "other.tar")])
    more.load_state_dict(state)
    assert len(list(more)) == sum(SIZES)
