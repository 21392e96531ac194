"""The Jobs API of a Ray cluster, as far as a schedule needs it: what runs, and submitting."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from ray.job_submission import JobSubmissionClient

from patchsieve.pipeline.errors import InfrastructureError

OUTPUT_KEY = "patchsieve_output"
"""The metadata that says which output folder a job of a schedule writes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job to submit. `out`: the output folder that it writes; `working_dir`: to upload, None for nothing."""

    id: str
    command: Sequence[str]
    out: str
    working_dir: str | None


class JobsApi:
    """One cluster's jobs. Every call raises InfrastructureError where the cluster does not answer as it should."""

    def __init__(self, address: str | None) -> None:
        """`address`: http://HOST:8265, or None for what Ray's environment variables say."""
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = address or "the address of RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
            raise InfrastructureError(f"no Jobs API at {where}: {_line(error)}") from error

    def active(self) -> dict[str, str]:
        """Submission id by output folder, of the schedules' jobs that have not ended."""
        try:
            jobs = self._client.list_jobs()
        except (ConnectionError, RuntimeError) as error:
            raise InfrastructureError(f"jobs cannot be listed: {_line(error)}") from error
        return {
            job.metadata[OUTPUT_KEY]: job.submission_id
            for job in jobs
            if job.metadata
            and OUTPUT_KEY in job.metadata
            and job.submission_id
            and not job.status.is_terminal()
        }

    def submit(self, job: Submission) -> bool:
        """Submit a job; False where there is one of this id already, ended or not."""
        runtime_env = {} if job.working_dir is None else {"working_dir": job.working_dir}
        try:
            self._client.submit_job(
                entrypoint=shlex.join(job.command),
                submission_id=job.id,
                runtime_env=runtime_env,
                metadata={OUTPUT_KEY: job.out},
            )
        except (ConnectionError, RuntimeError) as error:
            if self._knows(job.id):
                return False
            raise InfrastructureError(f"{job.id} cannot be submitted: {_line(error)}") from error
        return True

    def _knows(self, submission_id: str) -> bool:
        try:
            self._client.get_job_info(submission_id)
        except (ConnectionError, RuntimeError):
            return False
        return True


def _line(error: Exception) -> str:
    """The last line that says something: Ray's messages hold tracebacks of its servers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
