"""A whole output: what kind it is, each of its files, its rows, and what is marked as not done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.output.division import owner_folders
from patchsieve.pipeline.output.folder import ERRORS_FOLDER, new_run_id
from patchsieve.pipeline.output.owner import Owner, owner_of
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.output.settings import CONFIG_FILE, stored_config
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.pipeline.threads import map_threads
from patchsieve.ranker.model.checkpoint import check_ranker, is_ranker
from patchsieve.ranker.train.loop import LAST_FOLDER
from patchsieve.ranker.verify.config import VerifyConfig
from patchsieve.ranker.verify.files import Checked, check_parquet, check_record
from patchsieve.ranker.verify.report import Report
from patchsieve.ranker.verify.rows import RowCheck

DAMAGED_FOLDER = "damaged"
_SUFFIX = ".parquet"


def verify(config: VerifyConfig) -> Report:
    """Read all of an output. Raises UserError where there is none, where a run owns what is to be fixed, and for a
    teacher that is not there; InfrastructureError.
    """
    url = storage.absolute_url(config.out)
    owners = filter(None, map(owner_of, owner_folders(url)))
    report = Report(url=url, owner=", ".join(str(owner.get("run_id", "")) for owner in owners))
    rankers = [name for name in ("", LAST_FOLDER) if is_ranker(storage.join(url, name) if name else url)]
    if rankers:
        if config.sample or config.fix:
            raise UserError(
                f"{config.out} holds rankers: --sample and --fix are for outputs of score and prune; a ranker that is "
                "damaged is trained again"
            )
        for name in rankers:
            _add_ranker(report, name)
        return report
    records = _Records(config, report)
    records.check()
    if config.sample:
        records.score_again()
    if config.fix:
        records.mark()
    return report


def _add_ranker(report: Report, name: str) -> None:
    try:
        size = check_ranker(storage.join(report.url, name) if name else report.url)
    except UserError as error:
        report.damaged[name or "."] = str(error)
        return
    report.files, report.bytes = report.files + 2, report.bytes + size


class _Records:
    """The records of one output, and what hangs on them."""

    def __init__(self, config: VerifyConfig, report: Report) -> None:
        self._config, self._report, self._url = config, report, report.url
        self._sound: list[str] = []
        self._bad: dict[str, None] = {}

    def check(self) -> None:
        report = self._report
        try:
            report.missing = read_status(self._url).lost
        except DamagedFileError as error:
            report.damaged[CONFIG_FILE] = f"{error}; remove it, and run again with the settings of OUT"
        paths = [path for kind in (SCORES, INDEX) for path in self._listed(kind.folder)]
        known = {path.rpartition("/")[2] for path in paths}
        # What a listing tells has been told; a record that lies there is not gone.
        unread = {f"{path} is gone, or cannot be read" for path in paths}
        report.missing = {name: why for name, why in report.missing.items() if why not in unread}
        told = set(report.missing.values())
        for path, found in zip(paths, map_threads(self._unless_gone(check_record), paths), strict=True):
            for checked in found:
                if checked.problem not in told:
                    self._add(checked)
            if any(checked.problem for checked in found):
                self._bad[path] = None
            elif path.startswith(f"{SCORES.folder}/"):
                self._sound.append(path)
        # Of shards that failed; beside a record that tells of none, one is left over and never read.
        alone = [path for path in self._listed(ERRORS_FOLDER) if path.rpartition("/")[2] not in known]
        for path, found in zip(alone, map_threads(self._unless_gone(_errors_alone), alone), strict=True):
            for checked in found:
                self._add(checked)
                if checked.problem:
                    self._bad[path] = None

    def _unless_gone(self, check: Callable[[str, str], list[Checked]]) -> Callable[[str], list[Checked]]:
        def checked(path: str) -> list[Checked]:
            try:
                return check(self._url, path)
            except FileNotFoundError:  # a run that is at work replaced or removed it
                return []

        return checked

    def _listed(self, folder: str) -> list[str]:
        infos = storage.list_folder(storage.join(self._url, folder), suffix=_SUFFIX)
        return [f"{folder}/{storage.split_name(info.url)[1]}" for info in infos]

    def _add(self, checked: Checked) -> None:
        report = self._report
        if checked.problem:
            report.damaged[checked.path] = checked.problem
            return
        if checked.untold:
            report.unverifiable[checked.path] = checked.untold
        else:
            report.files, report.bytes = report.files + 1, report.bytes + checked.bytes

    def score_again(self) -> None:
        if not self._sound:
            raise UserError(f"--sample scores rows of score tables again, and {self._config.out} has none")
        stored = stored_config(self._url)
        teacher = self._config.teacher or ((stored or {}).get("other") or {}).get("teacher")
        if not isinstance(teacher, str):
            raise UserError(f"{self._config.out} does not tell where its teacher lies: give --teacher")
        rows = RowCheck(teacher, self._config.sample)
        for path in self._sound:
            found = rows.check(read_footer(storage.join(self._url, *path.split("/"))))
            self._report.rows += found.rows
            self._report.equal += found.equal
            if found.problem:
                self._report.damaged[path] = found.problem
                self._bad[path] = None
            elif found.untold:
                self._report.unverifiable[path] = found.untold

    def mark(self) -> None:
        """Move records with something damaged away: without them, their shards are not done."""
        if not self._bad:
            return
        run_id = new_run_id()
        with contextlib.ExitStack() as owned:
            for folder in owner_folders(self._url):
                owner = Owner(folder, run_id)
                owner.acquire()
                owned.callback(owner.release)
            for path in self._bad:
                parts = path.split("/")
                storage.move(storage.join(self._url, *parts), storage.join(self._url, DAMAGED_FOLDER, *parts))
                self._report.marked.append(path)


def _errors_alone(out: str, path: str) -> list[Checked]:
    return [check_parquet(out, path)]
