"""The inputs of the fuzzer: bombs, and valid documents in which something was changed."""

import copy
import gzip
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any


DIGITS = "9" * 5000  # Python refuses to convert so many
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "a", "nan", "1e400", "\ud800", "\x00"),
    *("\x1b[2J\u202e", "../x", "/dev/zero", "a\nb", "x" * 5000, "1" * 400, "9999-99-99"),
    *("99999-01-01T00:00:00Z", "2026-01-01", "[", "{", "[1", '{"a": 1}', "{x}", "%s", "hub:a"),
    *([], {}, [[]], [{}], {"": None}, [None], ["a"], [1, 2], {"a": 1}, {"a": {"b": []}}),
    *("sequential", "LORA", "generated", "default", "adapter", "weights", "learn", "init", "user"),
    *("@@DIGITS@@", "@@DEEP@@", "@@DEEPER@@"),
]
# Written in place of the marks above, as no value of Python is written so.
WRITTEN = {
    '"@@DIGITS@@"': DIGITS,
    '"@@DEEP@@"': "[" * 150 + "]" * 150,
    '"@@DEEPER@@"': '{"a": ' * 3000 + "1" + "}" * 3000,
}
TOKENS = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r\n", b'"', b"'", b"\\", b"\t"),
    *(b"[", b"]", b"{", b"}", b":", b",", b"-", b"- ", b"? ", b"&a ", b"*a ", b"<<: ", b"!!int "),
    *(b"!!binary ", b"!!set ", b"!!bool ", b"!!timestamp x", b"!!python/name:os.system ", b"|"),
    *(b"2026-13-45", b"0001-01-01T00:00:00+23:59", b"1e999", b"NaN", b"-Infinity", b"0x", b"0b"),
    *(b"\\ud800", b"\\Uffffffff", b"1:99:99", b"...", b"---", b"%YAML 9.9\n", b"null", b"true"),
    *(b'"a":1,"a":2', b"#", b"@", b"`", DIGITS.encode(), b"[" * 200, b"\x80", b"\xc2\x85"),
]


def input_of(reader: Any, number: int, seed: int) -> bytes:
    """Return input `number` of a reader: a bomb, or a changed document."""
    bombs = reader.bombs
    if number < len(bombs):
        return bombs[number]
    generator = random.Random(f"{seed} {reader.name} {number}")
    document = generator.choice(reader.documents)
    if generator.random() < 0.7:
        value = changed(document, generator)
        return reader.pack(value)
    content = reader.pack(document)
    return changed_bytes(content, generator) if generator.random() < 0.9 else content


def changed(value: Any, generator: random.Random) -> Any:
    """Return plain data in which one to three values, keys or elements are others."""
    value = json.loads(json.dumps(value))
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        value = _changed_once(value, generator)
    return value


def _changed_once(value: Any, generator: random.Random) -> Any:
    places = list(_places(value))
    if not places or generator.random() < 0.02:
        return copy.deepcopy(generator.choice(ODD))
    holder, key = generator.choice(places)
    kind, odd = generator.randrange(7), copy.deepcopy(generator.choice(ODD))
    if kind <= 2:
        holder[key] = odd
    elif kind == 3:
        del holder[key]
    elif kind == 4:  # a value from another place
        other, name = generator.choice(places)
        taken = other[name] if name in other or isinstance(other, list) else None
        holder[key] = json.loads(json.dumps(taken))
    elif kind == 5 and isinstance(holder, dict):
        names = [*(k for _, k in places if isinstance(k, str)), "x", "", "\ud800", "previous"]
        holder[generator.choice(names)] = generator.choice((holder.pop(key), odd))
    elif kind == 5 or isinstance(holder, list):
        holder.insert(0, generator.choice((copy.deepcopy(holder[key]), odd)))
    else:
        holder[key] = [holder[key]] if generator.random() < 0.5 else {key: holder[key]}
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place in plain data as (list or mapping, index or key)."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def changed_bytes(content: bytes, generator: random.Random) -> bytes:
    """Return a content with some bytes flipped, removed, repeated or put in."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 4))):
        start = generator.randrange(len(changed) + 1)
        end = min(len(changed), start + generator.choice((1, 2, 8, 100)))
        kind = generator.randrange(6)
        if kind == 0 and changed:
            place = generator.randrange(len(changed))
            changed[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[start:end]
        elif kind == 2:
            changed[start:start] = changed[start:end]
        elif kind == 3 and generator.random() < 0.3:
            del changed[start:]
        elif kind == 4:
            changed[start:end] = generator.choice(TOKENS)
        else:
            changed[start:start] = generator.choice(TOKENS)
    return bytes(changed)


def as_json(value: Any) -> bytes:
    """Write plain data as JSON, with what only a text can have."""
    text = json.dumps(value)
    for mark, written in WRITTEN.items():
        text = text.replace(mark, written)
    return text.encode()


def as_lines(values: Any) -> bytes:
    """Write a list as JSON lines."""
    return b"".join(as_json(v) + b"\n" for v in (values if isinstance(values, list) else [values]))


def as_yaml(value: Any) -> bytes:
    """Write plain data as YAML, whose flow style is nearly JSON."""
    text = as_json(value).replace(b"NaN", b".nan").replace(b"Infinity", b".inf")
    if isinstance(value, dict) and b"\\ud800" not in text:
        return b"".join(
            as_json(key) + b": " + as_json(inner).replace(b"NaN", b".nan") + b"\n"
            for key, inner in value.items()
        )
    return text


def as_gzip(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a function that packs as `pack` does, and compresses it."""
    return lambda value: gzip.compress(pack(value), compresslevel=1, mtime=0)


def as_csv(values: Any) -> bytes:
    """Write a list of mappings as a table, without a check of anything."""
    rows = [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []
    names = list(rows[0]) if rows else ["prompt", "completion"]
    lines = [",".join(map(str, names))]
    lines += [",".join(_cell(row.get(name)) for name in names) for row in rows]
    return "\n".join(lines).encode(errors="surrogatepass")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


def as_safetensors(value: Any) -> bytes:
    """Write plain data as the header of a safetensors file, with some bytes for its tensors."""
    header = as_json(value)
    return struct.pack("<Q", len(header)) + header + bytes(range(64))


MANY = 1 << 20
JSON_BOMBS = {
    "deep lists": b"[" * 100_000,
    "deep closed lists": b"[" * 100_000 + b"]" * 100_000,
    "deep mappings": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": DIGITS.encode(),
    "digits in a mapping": b'{"stage": ' + DIGITS.encode() + b"}",
    "a huge exponent": b'{"stage": 1e' + DIGITS.encode() + b"}",
    "nothing": b"",
    "zeros": bytes(MANY),
    "spaces": b" " * MANY,
    "line feeds": b"\n" * MANY,
    "half of a character": b'{"a": "\\ud800", "\\udfff": 1}',
    "a key twice": b'{"a": 1, "a": 2}',
    "not finite": b'{"a": NaN, "b": [Infinity, -Infinity]}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "many keys": b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(100_000)) + b"}",
    "an unclosed text": b'{"a": "' + b"x" * MANY,
    "a long text": b'{"a": "' + b"x" * MANY + b'"}',
}
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(12)
)
MERGES = b"a: &a {x1: 1, x2: 2}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10))
    for n in range(12)
)
YAML_BOMBS = JSON_BOMBS | {
    "laughs": LAUGHS,
    "merges": MERGES,
    "a cycle": b"training: &a {x: *a}\n",
    "a cycle of lists": b"tasks: &a [*a]\n",
    "an alias of nothing": b"tasks: *nothing\n",
    "block lists": b"- " * 50_000 + b"x",
    "questions": b"? " * 50_000 + b"x",
    "a date": b"seed: 2026-13-45\n",
    "a far date": b"seed: 0001-01-01T00:00:00+23:59\n",
    "a date as a key": b"adapter: {rank_pattern: {2026-01-01: 3}}\n",
    "a list as a key": b"? [a, b]\n: 1\n",
    "an object": b"seed: !!python/object/apply:os.system ['true']\n",
    "a tag": b"seed: !!bool x\n",
    "an empty number": b'seed: !!int ""\n',
    "a binary": b"seed: !!binary x\n",
    "a set": b"training: !!set {a, b}\n",
    "sexagesimal": b"seed: 1" + b":59" * 5000 + b"\n",
    "an escape": b'base: "\\Uffffffff"\n',
    "half a character": b'base: "\\ud800"\n',
    "many documents": b"--- a\n" * 10_000,
    "anchors": b"".join(b"k%d: &a%d 1\n" % (n, n) for n in range(5_000)),
    "long plain text": b"a: " + b"x " * 500_000,
}
GZIP_BOMBS = {
    "zeros": gzip.compress(bytes(64 << 20), 9),
    "half": gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 100)[:-20],
    "no header": b"\x1f\x8b",
    "not gzip": b'{"prompt": "a", "completion": "b"}\n',
    "nothing": gzip.compress(b""),
    "twice": gzip.compress(gzip.compress(b"{}")),
    "deep": gzip.compress(b"[" * 1_000_000),
}
SAFETENSORS_BOMBS = {
    "nothing": b"",
    "short": b"\x01\x02",
    "a huge header": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 90_000_000) + b"{}",
    "a header of zeros": struct.pack("<Q", 1000) + bytes(1000),
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "zeros": bytes(MANY),
    "a huge shape": as_safetensors(
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}
    ),
    "a negative shape": as_safetensors(
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}}
    ),
    "offsets beyond the file": as_safetensors(
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [2**50, 2**50 + 16]}}
    ),
    "overlapping": as_safetensors(
        {
            "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        }
    ),
    "an empty tensor": as_safetensors(
        {"a": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}
    ),
}
