"""What TensorBoard shows of a run: its points, without those that a restart took back."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event, SessionLog

Points = dict[
    str, list[tuple[int, float]]
]  # tag -> (step, value), in the order of steps if there is neither gap nor double


def events(path: pathlib.Path) -> Iterator[Event]:
    """The events of one file: records of length (uint64), its checksum, the message, its checksum.

    A record that a killed run left unfinished is the last one, and left out.
    """
    data = path.read_bytes()
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        if len(data) < 16 + length:
            return
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def points(workdir: pathlib.Path) -> Points:
    """All numbers in ``workdir/tensorboard``, as TensorBoard reads them: file after file, a START takes back."""
    found: Points = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                found = {tag: [point for point in line if point[0] < event.step] for tag, line in found.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
