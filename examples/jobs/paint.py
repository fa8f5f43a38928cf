"""Paints a picture that follows from a text: a Julia set as a PNG, standard library only, one to three seconds of work."""

import colorsys
import hashlib
import math
import struct
import zlib

SIZE = 320
STEPS = 90
# Where Julia sets look good: just outside the main cardioid of the Mandelbrot set.
RADIUS = 1.04


class Interrupted(Exception):
    """It was asked to stop."""


def paint(text, interrupted):
    """The PNG for `text`. Asks `interrupted` after every line."""
    digest = hashlib.sha256(text.encode()).digest()
    angle = struct.unpack(">H", digest[:2])[0] / 65535 * 2 * math.pi
    point = complex(math.cos(angle) / 2 - math.cos(2 * angle) / 4, math.sin(angle) / 2 - math.sin(2 * angle) / 4) * RADIUS
    hue, turn = digest[2] / 255, 0.25 + digest[3] / 255 / 2
    palette = [b"\x0b\x10\x18"] + [colour(hue, turn, step / STEPS) for step in range(1, STEPS + 1)]
    rows = []
    for y in range(SIZE):
        if interrupted():
            raise Interrupted
        imaginary = (y / (SIZE - 1) - 0.5) * 2.7
        row = bytearray(b"\0")
        for x in range(SIZE):
            z = complex((x / (SIZE - 1) - 0.5) * 2.7, imaginary)
            left = STEPS
            while left and z.real * z.real + z.imag * z.imag < 16:
                z = z * z + point
                left -= 1
            row += palette[left]
        rows.append(bytes(row))
    return png(b"".join(rows))


def colour(hue, turn, escaped):
    fast = escaped**3  # near 1: left at once, the background
    red, green, blue = colorsys.hls_to_rgb(hue + turn * (1 - fast), 0.13 + 0.62 * (1 - fast) ** 0.8, 0.65)
    return bytes(int(255 * part) for part in (red, green, blue))


def png(rows):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")
