"""The text form of protocol buffers, read without a schema.

Every dump of a graph but torchair's "py" is such text: torchair's "txt" (a GraphDef), the attributes inside its "pbtxt", GE's own
`ge_proto_*.txt` (a ModelDef) and `ge_onnx_*.pbtxt` (a fork of onnx's ModelProto). protobuf's parser needs the schema, and the schemas
come with torch_npu and CANN in versions that differ. Read without one, a dump opens on a machine that has neither.

Source of the grammar: protobuf's "Text Format Language Specification".
"""

from __future__ import annotations

import re
from typing import Any, Union

from moe_graph.dumps.reading_errors import DumpError

# A message: for each field its values in order. A value is a message, bytes (quoted text), a number, or a str (an identifier: an
# enum's name, true, false).
Message = dict[str, list[Any]]
Value = Union[Message, bytes, int, float, str]

_TOKEN = re.compile(
    r"""(?P<skip>(?:\s+|\#[^\n]*)+)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[A-Za-z_][\w.]*)
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?)(?![\w.])|-(?:inf|infinity|nan)\b)
      | (?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_CLOSING = {"{": "}", "<": ">"}
_LONGEST = 30  # characters of a whole number; 64 bits take 22 in octal
_FLOATS = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}


def parse(text: str) -> Message:
    """The message that `text` holds. Raises DumpError that names the line where it stops being the text of a message."""
    return _Parser(text).message()


def unescape(quoted: str) -> bytes:
    """The bytes of a quoted piece of text, its quotes included."""
    raw = quoted[1:-1].encode("utf-8", errors="surrogateescape")
    return _ESCAPE.sub(_unescape, raw) if b"\\" in raw else raw


def _unescape(match: re.Match[bytes]) -> bytes:
    octal, pair, four, eight, letter = match.groups()
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if pair is not None:
        return bytes([int(pair, 16)])
    if four is not None or eight is not None:
        point = int(four or eight, 16)
        return chr(point if point <= 0x10FFFF else 0xFFFD).encode("utf-8", errors="replace")
    return _LETTERS.get(letter, letter)


class _Parser:
    """One pass over the tokens with a stack of its own: no dump is too deep for it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0  # end of the token last taken
        self.kind = ""  # "" at the end of the text
        self.token = ""
        self._next()

    def message(self) -> Message:
        current: Message = {}
        outer: list[tuple[Message, str]] = []  # the messages around it, with the mark that closes each inner one
        while True:
            if self.kind == "mark" and outer and self.token == outer[-1][1]:
                current = outer.pop()[0]
                self._next()
                self._separator()
            elif not self.kind:
                if outer:
                    raise self._error(f"the text ends where {outer[-1][1]!r} is missing: is the dump cut off?")
                return current
            else:
                field = self._field()
                if self.kind == "mark" and self.token in _CLOSING:
                    inner: Message = {}
                    current.setdefault(field, []).append(inner)
                    outer.append((current, _CLOSING[self.token]))
                    current = inner
                    self._next()
                else:
                    current.setdefault(field, []).extend(self._values())
                    self._separator()

    def _field(self) -> str:
        if self.kind != "word":
            raise self._error(f"expected the name of a field, got {self.token!r}")
        field = self.token
        self._next()
        if self.kind == "mark" and self.token == ":":
            self._next()
        elif not (self.kind == "mark" and self.token in _CLOSING):
            raise self._error(f"expected ':' or '{{' after {field!r}, got {self.token!r}")
        return field

    def _values(self) -> list[Value]:
        if not (self.kind == "mark" and self.token == "["):
            return [self._value()]
        values = []
        self._next()
        while not (self.kind == "mark" and self.token == "]"):
            values.append(self._value())
            if self.kind == "mark" and self.token == ",":
                self._next()
            elif not (self.kind == "mark" and self.token == "]"):
                raise self._error(f"expected ',' or ']' in a list, got {self.token!r}")
        self._next()
        return values

    def _value(self) -> Value:
        kind, token = self.kind, self.token
        if kind == "text":
            value = b""
            while self.kind == "text":  # pieces side by side are one text
                value += unescape(self.token)
                self._next()
            return value
        if kind == "word":
            self._next()
            return _FLOATS.get(token.lower(), token)
        if kind == "number":
            number = _number(token)
            if number is None:
                raise self._error(f"a whole number of {len(token)} digits, beyond 64 bits")
            self._next()
            return number
        raise self._error(f"expected a value, got {token!r}")

    def _separator(self) -> None:
        if self.kind == "mark" and self.token in ",;":
            self._next()

    def _next(self) -> None:
        match = _TOKEN.match(self.text, self.at)
        if match is not None and match.lastgroup == "skip":
            self.at = match.end()
            match = _TOKEN.match(self.text, self.at)
        if match is None:
            if self.at < len(self.text):
                raise self._error(f"unexpected {self.text[self.at : self.at + 20]!r}")
            self.kind = self.token = ""
            return
        self.kind, self.token, self.at = match.lastgroup or "", match.group(), match.end()

    def _error(self, what: str) -> DumpError:
        line = self.text.count("\n", 0, self.at) + 1
        return DumpError(f"line {line}: {what.replace(', got ' + repr(''), ', but the text ends')}")


def _number(token: str) -> int | float | None:
    """The number; None for a whole one that no field of a message holds."""
    digits = token.lstrip("+-").lower()
    sign = -1 if token[0] == "-" else 1
    if digits in _FLOATS:
        return sign * _FLOATS[digits]
    hexadecimal = digits.startswith("0x")
    if not (hexadecimal or digits.isdigit()):
        return sign * float(digits.rstrip("f"))
    if len(digits) > _LONGEST:  # Python itself refuses to read or show thousands of digits
        return None
    octal = len(digits) > 1 and digits[0] == "0" and not set(digits) & set("89")
    number = sign * int(digits, 16 if hexadecimal else 8 if octal else 10)
    return number if -(2**63) <= number < 2**64 else None
