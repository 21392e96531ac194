"""Pruned shards as training reads them; the public names are imported from here."""

from patchsieve.pipeline.pruned.collate import collate_fixed, collate_naflex, place_by_coordinate
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.progress import WithPlaces, merge_states
from patchsieve.pipeline.pruned.sample import PrunedSample

__all__ = [
    "PrunedDataset",
    "PrunedSample",
    "WithPlaces",
    "collate_fixed",
    "collate_naflex",
    "merge_states",
    "place_by_coordinate",
]
