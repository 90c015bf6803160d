"""What the containers of audio files do not say, or say wrongly, and libsndfile believes: lengths
that were never written, files that were cut short, files that were joined."""

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO

import soundfile

FLAC_HEAD = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
OGG_PAGE = 27  # bytes of its head, before the table of its segments
FIRST, LAST = 2, 4  # flags of a page
UNKNOWN_LENGTH = 1 << 62  # what libsndfile says where a header states no number of samples
# The frame that encoders put first, which states the length, after its head and side information
MP3_HEAD = re.compile(rb"\xff[\xe2-\xff][\x10-\xef].{1,34}?(?:Xing|Info)", re.DOTALL)
LONGEST_HEAD = 64  # bytes, and more than these patterns match
BLOCK = 1 << 24  # bytes that are searched at once: files of hours are larger than memory


def parts(path: Path) -> list[bytes]:
    """The files that a WAV, AIFF, FLAC, Ogg or MP3 file was joined of, each of which libsndfile
    reads alone; [] where it is one file, or of another kind. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] in (b"RIFF", b"FORM"):
            starts = _chunk_starts(file)
        elif head[:4] == b"fLaC":
            starts = _found(file, FLAC_HEAD)
        elif head[:4] == b"OggS":
            file.seek(0)
            starts = _ogg_starts(file.read())
        elif _is_mp3(head):
            starts = [0, *_found(file, MP3_HEAD)[1:]]
        else:
            return []
        if len(starts) < 2:
            return []
        file.seek(0)
        content = file.read()
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]


def _found(file: BinaryIO, pattern: re.Pattern[bytes]) -> list[int]:
    """Where the matches of a pattern begin."""
    starts, free = [], 0  # matches do not overlap
    for at in range(0, file.seek(0, io.SEEK_END), BLOCK):
        file.seek(at)
        window = file.read(BLOCK + LONGEST_HEAD)
        for match in pattern.finditer(window, max(0, free - at)):
            if match.start() < BLOCK:
                starts.append(at + match.start())
                free = at + match.end()
    return starts


def _chunk_starts(file: BinaryIO) -> list[int]:
    """Where a WAV or AIFF file begins, and those of its kind that follow its end."""
    starts: list[int] = []
    at, head = file.seek(0), file.read(8)
    name = head[:4]
    while head[:4] == name:
        starts.append(at)
        at += _chunk_size(head)
        file.seek(at)
        head = file.read(8)
    return starts


def _chunk_size(head: bytes) -> int:
    """How many bytes the file that begins so has, by its own size."""
    order = "<I" if head[:4] == b"RIFF" else ">I"
    return 8 + (struct.unpack(order, head[4:8])[0] if len(head) == 8 else 0)


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe2")


def _ogg_pages(content: bytes) -> list[tuple[int, int, int]]:
    """(position, flags, size by its own table) of every page, the last perhaps of more bytes than
    there are."""
    pages, at = [], 0
    while content[at : at + 4] == b"OggS" and len(content) >= at + OGG_PAGE:
        table = content[at + OGG_PAGE : at + OGG_PAGE + content[at + 26]]
        size = OGG_PAGE + content[at + 26] + sum(table)
        pages.append((at, content[at + 5], size))
        at += size
    return pages


def _ogg_starts(content: bytes) -> list[int]:
    """Where a stream begins after the one before has ended."""
    starts, ended = [0], False
    for at, flags, _ in _ogg_pages(content):
        if ended and flags & FIRST:
            starts.append(at)
            ended = False
        ended |= bool(flags & LAST)
    return starts


def unfinished(path: Path) -> io.BytesIO | None:
    """A WAV file whose recorder died before it wrote the sizes, with the sizes that it has; None
    where they were written, or nothing is behind them. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        at = 12
        while len(head) >= at + 8:
            name, size = head[at : at + 4], struct.unpack("<I", head[at + 4 : at + 8])[0]
            if name == b"data":
                length = path.stat().st_size - at - 8
                if size or not length:
                    return None
                file.seek(0)
                content = bytearray(file.read())
                content[4:8] = struct.pack("<I", len(content) - 8)
                content[at + 4 : at + 8] = struct.pack("<I", length)
                return io.BytesIO(content)
            at += 8 + size + size % 2
    return None


def no_length(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether libsndfile does not know how long a file is: an MP3 whose length it guesses from the
    first frame, a FLAC that was written to a pipe."""
    if file.format == "FLAC":
        return bool(file.frames >= UNKNOWN_LENGTH)
    if file.format != "MP3":
        return False
    import miniaudio  # late: few need it

    try:
        known = file.frames + 3 * 1152  # the encoder's delay is not counted here
        return bool(miniaudio.mp3_get_file_info(str(path)).num_frames > known)
    except miniaudio.MiniaudioError:
        return False


def without_length(path: Path, file: soundfile.SoundFile) -> io.BytesIO | None:
    """A file as WAV where libsndfile does not know how long it is; None of others."""
    if not no_length(path, file):
        return None
    import miniaudio
    import numpy as np

    read = miniaudio.flac_read_file_s16 if file.format == "FLAC" else miniaudio.mp3_read_file_s16
    try:
        decoded = read(str(path))
    except miniaudio.MiniaudioError:
        return None
    out = io.BytesIO()
    pcm = np.frombuffer(decoded.samples, np.int16).reshape(-1, decoded.nchannels)
    soundfile.write(out, pcm, decoded.sample_rate, format="WAV", subtype="PCM_16")
    out.seek(0)
    return out


def cut_short(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether a file ends before what its header states, where libsndfile hides it."""
    if file.format == "NIST":
        with path.open("rb") as raw:
            stated = re.search(rb"sample_count -i (\d+)", raw.read(1024))
        return stated is not None and file.frames < int(stated[1])
    if file.format == "OGG":
        content = path.read_bytes()
        pages = _ogg_pages(content)
        at, flags, size = pages[-1] if pages else (0, 0, 0)
        whole = at + size <= len(content)
        # A stream that was recorded has no last page; one that was cut ends within a page
        return not (whole and (flags & LAST or at + size == len(content)))
    # libsndfile's log has lines like "data : 62880 (should be 31418)". Where it compares the audio
    # itself, the size of the whole matters no more: some programs write the file's there. Sizes of
    # 2 GiB and more come from programs that stream and do not know the size.
    line = re.compile(r"(data|ssnd|riff|size)\s*: (\d+) \(should be (\d+)\)", re.IGNORECASE)
    found = [(name.lower(), int(a), int(b)) for name, a, b in line.findall(file.extra_info)]
    if file.format in ("WAV", "WAVEX", "AIFF"):
        found = [row for row in found if row[0] in ("data", "ssnd")]
    return any(there < stated < 0x7FFF0000 for _, stated, there in found)
