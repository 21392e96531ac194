"""Every file operation of the project, on any store: what others use of it is imported from here."""

from patchsieve.pipeline.storage.lookup import ObjectInfo, exists, glob, list_folder, stat, stat_many
from patchsieve.pipeline.storage.parsing import parsing, read_object
from patchsieve.pipeline.storage.retry import describe_error, with_retry
from patchsieve.pipeline.storage.scratch import remove_dead_scratch, scratch_folder
from patchsieve.pipeline.storage.streams import (
    ByteStream,
    RandomAccessFile,
    open_stream,
    parquet_source,
    read_bytes,
    read_range,
)
from patchsieve.pipeline.storage.urls import (
    absolute_url,
    canonical_url,
    has_pattern,
    is_local,
    join,
    kept_settings,
    local_path,
    pattern_start,
    redact,
    refuse_unsafe,
    split_name,
    without_secrets,
)
from patchsieve.pipeline.storage.writing import (
    arrow_filesystem,
    commit_bytes,
    commit_file,
    create_exclusive,
    make_folder,
    move,
    remove,
    remove_temporaries,
)

__all__ = [
    "ByteStream",
    "ObjectInfo",
    "RandomAccessFile",
    "absolute_url",
    "arrow_filesystem",
    "canonical_url",
    "commit_bytes",
    "commit_file",
    "create_exclusive",
    "describe_error",
    "exists",
    "glob",
    "has_pattern",
    "is_local",
    "join",
    "kept_settings",
    "list_folder",
    "local_path",
    "make_folder",
    "move",
    "open_stream",
    "parquet_source",
    "parsing",
    "pattern_start",
    "read_bytes",
    "read_object",
    "read_range",
    "redact",
    "refuse_unsafe",
    "remove",
    "remove_dead_scratch",
    "remove_temporaries",
    "scratch_folder",
    "split_name",
    "stat",
    "stat_many",
    "with_retry",
    "without_secrets",
]
