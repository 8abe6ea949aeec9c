"""TensorBoard's event files, written and read without TensorFlow.

A file is a sequence of records: the length of a message (uint64), the masked CRC-32C of these 8 bytes, the message, the
masked CRC-32C of the message, all little-endian. A message is a protobuf with these fields:

    Event          1 wall_time (double)   2 step   3 file_version (string)   5 summary   7 session_log
    Summary        1 value: 1 tag (string)   2 simple_value (float)   8 tensor   9 metadata
    TensorProto    1 dtype (7: string)   2 tensor_shape: 2 dim: 1 size   8 string_val
    metadata       1 plugin_data: 1 plugin_name (string)
    SessionLog     1 status (1: START; TensorBoard then drops the points of this and later steps in earlier files)
"""

import pathlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

START = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
CRC_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed

Points = dict[str, list[tuple[int, float]]]  # tag -> (step, value) in the order in which they were written


class EventFile:
    """One new event file in ``directory``, named after the time, the host and ``suffix``. Raises OSError."""

    def __init__(self, directory: pathlib.Path, suffix: str):
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{suffix}"
        self._file = (directory / name).open("wb")
        self._write(_field(3, b"brain.Event:2"))

    def drop_from(self, step: int) -> None:
        """Makes TensorBoard drop the points of ``step`` and later steps in earlier files."""
        self._write(_field(2, step) + _field(7, _field(1, START)))

    def add(self, step: int, tag: str, value: float | str) -> None:
        """Adds a point: a number under ``tag``, a text under ``tag/text_summary``, where TensorBoard expects it."""
        if isinstance(value, str):
            tensor = _field(1, 7) + _field(2, _field(2, _field(1, 1))) + _field(8, value.encode())
            metadata = _field(1, _field(1, b"text"))
            summary = _field(1, f"{tag}/text_summary".encode()) + _field(8, tensor) + _field(9, metadata)
        else:
            summary = _field(1, tag.encode()) + _field(2, float(value))
        self._write((_field(2, step) if step else b"") + _field(5, _field(1, summary)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, fields: bytes) -> None:
        message = bytes([1 << 3 | FIXED64]) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(message))
        record = length + struct.pack("<I", masked_crc(length)) + message + struct.pack("<I", masked_crc(message))
        self._file.write(record)


def read_points(directory: pathlib.Path) -> Points:
    """All numbers in the event files of ``directory``, as TensorBoard shows them.

    Files count in the order of their names. A record that a killed process left unfinished ends its file.
    """
    points: Points = {}
    for path in sorted(directory.iterdir()):
        for event in read_events(path):
            step = int(event.get(2, 0))
            if _fields(event.get(7, b"")).get(1) == START:
                points = {tag: [point for point in line if point[0] < step] for tag, line in points.items()}
            value = _fields(_fields(event.get(5, b"")).get(1, b""))
            if 2 in value:
                points.setdefault(value[1].decode(), []).append((step, value[2]))
    return points


def read_events(path: pathlib.Path) -> Iterator[dict[int, Any]]:
    """The fields of each event in a file, by number. Raises ValueError if a checksum is wrong."""
    data = path.read_bytes()
    while len(data) >= 12 and len(data) >= 16 + (length := struct.unpack("<Q", data[:8])[0]):
        message, end = data[12 : 12 + length], 12 + length
        if data[8:12] + data[end : end + 4] != struct.pack("<II", masked_crc(data[:8]), masked_crc(message)):
            raise ValueError(f"{path}: a record's checksum is wrong")
        yield _fields(message)
        data = data[end + 4 :]


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data``, rotated and shifted as TFRecord files store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (CRC_POLYNOMIAL if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_entry(byte) for byte in range(256)]


def _field(number: int, value: int | float | bytes) -> bytes:
    """One protobuf field: an int as varint, a float in 4 bytes, bytes with their length."""
    if isinstance(value, bytes):
        return bytes([number << 3 | BYTES]) + _varint(len(value)) + value
    if isinstance(value, float):
        return bytes([number << 3 | FIXED32]) + struct.pack("<f", value)
    return bytes([number << 3 | VARINT]) + _varint(value)


def _varint(value: int) -> bytes:
    """7 bits a byte, lowest first; the high bit of each byte but the last is set."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _fields(message: bytes) -> dict[int, Any]:
    """Number -> value of each field of a message; of a repeated field the last one."""
    fields: dict[int, Any] = {}
    while message:
        (tag, wire), message = divmod(message[0], 8), message[1:]
        if wire in (FIXED64, FIXED32):
            size, code = (8, "<d") if wire == FIXED64 else (4, "<f")
            fields[tag], message = struct.unpack(code, message[:size])[0], message[size:]
            continue
        end = next(i for i, byte in enumerate(message) if byte < 128) + 1
        number = sum((byte & 127) << 7 * i for i, byte in enumerate(message[:end]))
        message = message[end:]
        if wire == BYTES:
            fields[tag], message = message[:number], message[number:]
        else:
            fields[tag] = number
    return fields
