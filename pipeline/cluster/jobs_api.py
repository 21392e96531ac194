"""The Jobs API of a Ray cluster, as far as a schedule needs it: what runs, and submitting."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from patchsieve.pipeline.cluster.known_job import JobEnd, KnownJob, why_of
from patchsieve.pipeline.cluster.private_api import forget_auth_token
from patchsieve.pipeline.errors import InfrastructureError, first_line, last_line

OUTPUT_KEY = "patchsieve_output"
"""The metadata that says which output folder a job of a schedule writes."""

# What the client raises: its own, those of requests (of which all are OSErrors), and those of tokens.
_SHOWN_CHARACTERS = 200
_ERRORS = (OSError, RuntimeError, ValueError, RayError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job to submit. `out`: the output folder that it writes; `working_dir`: to upload, None for nothing.

    `gpus`: those that the command itself asks for.
    """

    id: str
    command: Sequence[str]
    out: str
    working_dir: str | None
    gpus: float = 0.0


class JobsApi:
    """One cluster's jobs. Every call raises InfrastructureError where the cluster does not answer as it should."""

    def __init__(self, address: str | None) -> None:
        """`address`: http://HOST:8265, or None for what Ray's environment variables say."""
        forget_auth_token()
        try:
            self._client = JobSubmissionClient(address)
        except _ERRORS as error:
            where = address or "the address of RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
            raise InfrastructureError(f"no Jobs API at {where}: {_line(error)}") from error

    def jobs(self) -> list[KnownJob]:
        """The schedules' jobs that the cluster knows, those that have ended too."""
        try:
            listed = self._client.list_jobs()
        except _ERRORS as error:
            raise InfrastructureError(f"jobs cannot be listed: {_line(error)}") from error
        return [
            KnownJob(id=job.submission_id, out=job.metadata[OUTPUT_KEY], end=_end_of(job))
            for job in listed
            if job.submission_id and job.metadata and OUTPUT_KEY in job.metadata
        ]

    def submit(self, job: Submission) -> bool:
        """Submit a job; False where there is one of this id already, ended or not."""
        runtime_env = {} if job.working_dir is None else {"working_dir": job.working_dir}
        try:
            self._client.submit_job(
                entrypoint=shlex.join(job.command),
                submission_id=job.id,
                runtime_env=runtime_env,
                metadata={OUTPUT_KEY: job.out},
                entrypoint_num_gpus=job.gpus or None,
            )
        except _ERRORS as error:
            if self._knows(job.id):
                return False
            raise InfrastructureError(f"{job.id} cannot be submitted: {_line(error)}") from error
        return True

    def _knows(self, submission_id: str) -> bool:
        try:
            self._client.get_job_info(submission_id)
        except _ERRORS:
            return False
        return True


def _end_of(job: Any) -> JobEnd | None:
    if not job.status.is_terminal():
        return None
    failed = job.status == JobStatus.FAILED
    return JobEnd(
        state=job.status.value.lower(),
        exit_code=job.driver_exit_code,
        why=why_of(job.message or "") if failed else "",
        ended=job.end_time / 1000 if job.end_time else None,
    )


def _line(error: Exception) -> str:
    """One line: what ended it, as Ray's messages hold tracebacks of its servers; of a token that is wrong, the first.

    Ray explains tokens in paragraphs.
    """
    if isinstance(error, AuthenticationError):
        shown = first_line(error)[:_SHOWN_CHARACTERS]
        return f"{shown} (the cluster's token: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or its file)"
    return last_line(error)
