"""The points that TensorBoard shows of a run, without those that a restart removed."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event, SessionLog

Points = dict[str, list[tuple[int, float]]]  # tag -> (step, value), in the order in which they were written


def events(path: pathlib.Path) -> Iterator[Event]:
    """The events of one file: records of length (uint64), its checksum, the message, its checksum.

    An unfinished last record, which a killed run leaves, is skipped.
    """
    data = path.read_bytes()
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        if len(data) < 16 + length:
            return
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def points(workdir: pathlib.Path) -> Points:
    """All numbers in ``workdir/tensorboard`` as TensorBoard reads them.

    Files are read in order; a START event removes the points of its step and later ones.
    """
    shown: Points = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                shown = {tag: [point for point in line if point[0] < event.step] for tag, line in shown.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown
