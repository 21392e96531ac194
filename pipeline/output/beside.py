"""Files that records tell of, which lie beside them: the tars of a pruned dataset. Listings alone are asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from patchsieve.pipeline import storage
from patchsieve.pipeline.output.records import Record
from patchsieve.pipeline.threads import map_threads


def sizes_below(out: str, paths: Collection[str]) -> dict[str, int | None]:
    """Bytes of the files at these paths below an output, by path; what is not there is left out."""
    folders = sorted({path.rpartition("/")[0] for path in paths})
    listed = map_threads(lambda folder: storage.list_folder(storage.join(out, *folder.split("/"))), folders)
    found = {
        f"{folder}/{storage.split_name(info.url)[1]}": info.size
        for folder, infos in zip(folders, listed, strict=True)
        for info in infos
    }
    return {path: found[path] for path in paths if path in found}


def lost_outputs(out: str, records: Mapping[str, Record]) -> dict[str, str]:
    """What is wrong with the files that records tell of, as far as listings tell, by the records' keys."""
    told = {key: record for key, record in records.items() if record.output}
    sizes = sizes_below(out, [record.output for record in told.values()])
    lost = {}
    for key, record in told.items():
        if record.output not in sizes:
            lost[key] = f"{record.output} is gone"
        elif sizes[record.output] != record.output_size:
            lost[key] = f"{record.output} has {sizes[record.output]} bytes of {record.output_size}"
    return lost
