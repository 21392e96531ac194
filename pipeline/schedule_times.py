"""When a schedule ticks: cron expressions in a time zone."""

from __future__ import annotations

import datetime
import zoneinfo

from cronsim import CronSim, CronSimError

from patchsieve.pipeline.errors import UserError


def next_time(cron: str, timezone: str, after: datetime.datetime) -> datetime.datetime:
    """The first time of a cron expression after a moment, both aware, the result in `timezone`.

    When clocks are put forward or back, a time of day that is skipped or told twice is met once, as Debian's cron
    does it. Raises UserError for what is no cron expression or no time zone, or never comes.
    """
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"--timezone is {timezone!r}, must be a name such as UTC or Europe/Berlin") from None
    if len(cron.split()) != 5:
        raise UserError(f"--cron is {cron!r}, must be five fields such as '0 3 * * *'")
    try:
        return next(CronSim(cron, after.astimezone(zone)))
    except CronSimError as error:
        raise UserError(f"--cron is {cron!r}: {str(error).lower()}") from None
    except StopIteration:
        raise UserError(f"--cron is {cron!r}: no such time in the next 50 years") from None
