"""The photos of a folder: which files they are, what they are called in shards, and of which class each is."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shards.reader import MAX_NAME, MEMBER_LIMIT
from patchsieve.pipeline.storage import ObjectInfo

_SHOWN = 3
_PARTS = {"train", "training", "val", "valid", "validation", "test"}


@dataclasses.dataclass(frozen=True, slots=True)
class PhotoFile:
    """A file: `name` is its path below the folder, its parts divided by `/`."""

    name: str
    info: ObjectInfo

    @property
    def class_name(self) -> str | None:
        """The sub folder that it lies in, directly or deeper; None for one that lies in the folder itself."""
        first, slash, _ = self.name.partition("/")
        return first if slash else None

    @property
    def ending(self) -> str:
        """What follows the last dot, in lower case."""
        return os.path.splitext(self.name)[1][1:].lower()


def photos_below(folder: str, endings: Sequence[str]) -> tuple[list[PhotoFile], collections.Counter[str]]:
    """The files of these endings (lower case, no dot) in a folder and its sub folders, by name, and how many others.

    Hidden files and folders are left out, and not counted. Raises UserError where there is no such folder.
    """
    url = storage.absolute_url(folder)
    try:
        is_folder = storage.stat(url).is_folder
    except FileNotFoundError:
        is_folder = False
    if not is_folder:
        raise UserError(f"there is no folder {storage.redact(url)}")
    start = len(storage.join(url, ""))
    found = [PhotoFile(info.url[start:], info) for info in storage.list_below(url)]
    others = collections.Counter(file.ending for file in found if file.ending not in endings)
    return sorted((file for file in found if file.ending in endings), key=lambda file: file.name), others


class SampleKeys:
    """Sample keys from file names: no dots, none twice, text that every format can hold."""

    def __init__(self) -> None:
        # How often each was asked for: a million of one name are not counted through a million times.
        self._taken: dict[str, int] = {}

    def new(self, name: str) -> str:
        """The key of the file of this name."""
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        stem = os.path.splitext(text)[0].replace("/", "-").replace(".", "_")
        key = stem
        while key in self._taken:
            self._taken[stem] += 1
            key = f"{stem}~{self._taken[stem]}"
        self._taken[key] = 1
        return key


def classes_of(photos: Sequence[PhotoFile]) -> list[str]:
    """The names of the sub folders that hold photos, sorted: the number of a class is its place.

    Empty where no photo lies in one. Raises UserError where some do and others do not, and for folders of parts of a
    dataset.
    """
    names = {photo.class_name for photo in photos}
    if None in names and len(names) > 1:
        loose = sum(photo.class_name is None for photo in photos)
        raise UserError(
            f"{loose} of {len(photos)} photos lie in no sub folder, and would have no label: give each class a folder "
            "of its own, or --no-labels"
        )
    found = sorted(name for name in names if name is not None)
    if found and {name.lower() for name in found} <= _PARTS:
        raise UserError(
            f"the sub folders {', '.join(found)} are parts of a dataset, not classes: pack each by itself (--classes "
            "gives the others the numbers of the first), or --no-labels"
        )
    return found


def is_too_large(photo: PhotoFile) -> bool:
    """Whether no shard is read with it: a file of more than the limit, or a name that is too long."""
    return (photo.info.size or 0) > MEMBER_LIMIT or len(photo.name) > MAX_NAME // 2


def shown_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
