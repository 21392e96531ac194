"""Models on the Hugging Face hub: their files on this machine, fetched once and kept where its client keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from patchsieve.pipeline.errors import UserError, first_line
from patchsieve.pipeline.storage.urls import redact

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""What a name on the hub looks like, `user/name`; so does a relative path, which comes first where it exists."""


def hub_folder(repository: str, files: Sequence[str], *, otherwise: str) -> str:
    """The local folder with these files (patterns) of a repository; with HF_HUB_OFFLINE=1 what was fetched before.

    Raises UserError, which ends with what to do `otherwise`, where it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repository, allow_patterns=list(files))
    except Exception as error:  # whatever the client raises for no network, no such model, no access
        raise UserError(
            f"cannot fetch {repository} from the Hugging Face hub ({redact(first_line(error))}), and no local folder "
            f"has that name; {otherwise}"
        ) from None
