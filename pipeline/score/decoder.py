"""A process that makes views of images for its parent: `python -m patchsieve.pipeline.score.decoder FD`.

What goes through the connection is JSON and bytes, never pickles: image files are hostile until they are decoded.
A message is a line of JSON and then the bytes that it counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.bounded import CPU_SECONDS
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.scoring.views import View, draw_views


def to_message(head: dict[str, Any], *parts: bytes | memoryview) -> bytes:
    """A message."""
    return b"".join((json.dumps(head).encode(), b"\n", *parts))


def from_message(message: bytes) -> tuple[dict[str, Any], memoryview]:
    """What `to_message` was given, the parts in one."""
    end = message.index(b"\n")
    head: dict[str, Any] = json.loads(message[:end])
    return head, memoryview(message)[end + 1 :]


def views_to_message(views: list[View]) -> bytes:
    """The views of one image as a message."""
    entries = [
        {
            "view": view.view,
            "size": view.image_size,
            "box": dataclasses.asdict(view.box),
            "pixels": view.pixels.shape,
            "visible": len(view.visible),
            "jpeg": None if view.jpeg is None else len(view.jpeg),
        }
        for view in views
    ]
    parts = (part for view in views for part in (view.pixels.data, view.visible.data, view.jpeg or b""))
    return to_message({"views": entries}, *parts)


def views_from_message(sample_key: str, head: dict[str, Any], rest: memoryview) -> list[View]:
    """What `views_to_message` was given; arrays lie in the message."""
    views: list[View] = []
    place = 0
    for entry in head["views"]:
        pixels = np.frombuffer(rest, np.uint8, entry["pixels"][0] * entry["pixels"][1], place)
        place += pixels.nbytes
        visible = np.frombuffer(rest, np.int16, entry["visible"], place)
        place += visible.nbytes
        jpeg = None if entry["jpeg"] is None else bytes(rest[place : place + entry["jpeg"]])
        place += len(jpeg or b"")
        views.append(
            View(
                sample_key=sample_key,
                view=entry["view"],
                image_size=tuple(entry["size"]),
                box=ViewBox(**entry["box"]),
                pixels=pixels.reshape(entry["pixels"]),
                visible=visible,
                jpeg=jpeg,
            )
        )
    return views


def serve(connection: Connection) -> None:
    """Answer until the other end is closed: views, or why there are none."""
    settings, _ = from_message(connection.recv_bytes())
    rows, patch_size = RowConfig(**settings["rows"]), settings["patch_size"]
    connection.send_bytes(to_message({"ready": os.getpid()}))
    while True:
        try:
            head, data = from_message(connection.recv_bytes())
        except EOFError:
            return
        # Its default action ends the process, whatever library it is in; the parent knows the image by that.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = views_to_message(draw_views(head["key"], decode_image(bytes(data)), rows, patch_size))
        except ContentError as error:
            answer = to_message({"fault": str(error)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the connection
    serve(Connection(int(sys.argv[1])))
