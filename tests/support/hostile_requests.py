"""Hostile and malformed requests, each with its expected response.

They are sent in this order to a service that has one hero, Deadpond, whose id is 1.
"""

import json
from dataclasses import dataclass, replace
from random import Random
from typing import Any

JSON = {"Content-Type": "application/json"}
NOISE = "".join(Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9_000))  # noqa: S311 - text that does not compress, not a secret

NOT_FOUND = "Hero not found"
NO_DIGITS = "Input should be a valid integer, unable to parse string as an integer"
TOO_MANY_DIGITS = "Unable to parse input string as an integer, exceeded maximum size"
NO_INTEGER = "Input should be a valid integer"
NO_STRING = "Input should be a valid string"
NO_UNICODE = "Input should be a valid string, unable to parse raw data as a unicode string"
NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"
HAS_NUL = r"String should match pattern '^[^\x00]*$'"
TOO_SHORT = "String should have at least 1 character"
TOO_LONG = "String should have at most 255 characters"
MISSING = "Field required"
NO_JSON = "Send JSON, with Content-Type: application/json"
NOT_PARSED = "There was an error parsing the body"


@dataclass(frozen=True)
class Case:
    """A request, byte for byte, and the status and the body of its response.

    Where that depends on the version of Python, `alternatives` has the other responses.
    """

    name: str
    method: str
    target: str
    status: int
    response_body: Any
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = tuple(JSON.items())
    alternatives: tuple[tuple[int, Any], ...] = ()

    @property
    def expected(self) -> list[tuple[int, bytes]]:
        """The status and the bytes of the body of each response that is right."""
        return [
            (status, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
            for status, body in [(self.status, self.response_body), *self.alternatives]
        ]


def detail(value: object) -> dict[str, object]:
    return {"detail": value}


def invalid(kind: str, message: str, *loc: str | int) -> dict[str, object]:
    return detail([{"type": kind, "loc": list(loc), "msg": message}])


def malformed(position: int) -> dict[str, object]:
    return invalid("json_invalid", "JSON decode error", "body", position)


def at_most(limit: int, *loc: str | int) -> dict[str, object]:
    return invalid("less_than_equal", f"Input should be less than or equal to {limit}", *loc)


def at_least(limit: int, *loc: str | int) -> dict[str, object]:
    return invalid("greater_than_equal", f"Input should be greater than or equal to {limit}", *loc)


def hero(hero_id: int = 1, name: str = "Deadpond", age: int | None = None) -> dict[str, object]:
    return {"name": name, "age": age, "id": hero_id}


def get(target: str, status: int, response_body: object) -> Case:
    return Case(f"GET {target[:40]} of {len(target)}", "GET", target, status, response_body, headers=())


def post(
    name: str, body: str | bytes, status: int, response_body: object, headers: dict[str, str] | None = None
) -> Case:
    sent = body if isinstance(body, bytes) else body.encode()
    pairs = tuple((JSON if headers is None else headers).items())
    return Case(f"POST {name}", "POST", "/heroes/", status, response_body, sent, pairs)


def patch(name: str, body: str, status: int, response_body: object) -> Case:
    return Case(f"PATCH {name}", "PATCH", "/heroes/1", status, response_body, body.encode())


def depends_on_python(case: Case, status: int = 400, response_body: object = None) -> Case:
    """Allow another response: by default that of a body that Python's decoder gives up on."""
    return replace(case, alternatives=((status, response_body or detail(NOT_PARSED)),))


def written(more: str = "", name: str = '"Deadpond"', secret_name: str = '"Dive Wilson"') -> str:
    return f'{{"name":{name},"secret_name":{secret_name}{more}}}'


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


BOTH_WRONG = detail(
    [
        {"type": "int_parsing", "loc": ["path", "hero_id"], "msg": NO_DIGITS},
        {"type": "json_type", "loc": ["body"], "msg": NO_JSON},
    ]
)

PATHS = [
    get("/heroes/2147483647", 404, detail(NOT_FOUND)),
    get("/heroes/2147483648", 404, detail(NOT_FOUND)),
    get("/heroes/9223372036854775807", 404, detail(NOT_FOUND)),
    get("/heroes/9223372036854775808", 422, at_most(2**63 - 1, "path", "hero_id")),
    get("/heroes/-9223372036854775808", 404, detail(NOT_FOUND)),
    get("/heroes/-9223372036854775809", 422, at_least(-(2**63), "path", "hero_id")),
    get("/heroes/-1", 404, detail(NOT_FOUND)),
    get("/heroes/" + "9" * 4_000, 422, at_most(2**63 - 1, "path", "hero_id")),
    get("/heroes/" + "9" * 5_000, 422, invalid("int_parsing_size", TOO_MANY_DIGITS, "path", "hero_id")),
    get("/heroes/001", 200, hero()),
    *[
        get(f"/heroes/{word}", 422, invalid("int_parsing", NO_DIGITS, "path", "hero_id"))
        for word in [
            "1_0",
            "+1",
            "%201",
            "1%20",
            "1.0",
            "1e2",
            "0x1",
            "%00",
            "1%00",
            "%ff",
            "%D9%A1",
            "%F0%9F%92%A9",
            "NaN",
            "Infinity",
            "null",
            "true",
            "-",
            "--1",
            "1%0A",
            "%ED%A0%80",
            ";DROP%20TABLE%20hero",
        ]
    ],
    get("/heroes/1/2", 404, detail("Not Found")),
    get("/heroes//", 404, detail("Not Found")),
    get("//heroes", 404, detail("Not Found")),
    get("/%00", 404, detail("Not Found")),
]

QUERIES = [
    get("/heroes/?limit=-1", 422, at_least(0, "query", "limit")),
    get("/heroes/?limit=101", 422, at_most(100, "query", "limit")),
    get("/heroes/?limit=9223372036854775808", 422, at_most(100, "query", "limit")),
    get("/heroes/?offset=-1", 422, at_least(0, "query", "offset")),
    get("/heroes/?offset=2147483648", 200, []),
    get("/heroes/?offset=9223372036854775807", 200, []),
    get("/heroes/?offset=9223372036854775808", 422, at_most(2**63 - 1, "query", "offset")),
    get("/heroes/?offset=" + "9" * 5_000, 422, invalid("int_parsing_size", TOO_MANY_DIGITS, "query", "offset")),
    *[
        get(f"/heroes/?{name}={word}", 422, invalid("int_parsing", NO_DIGITS, "query", name))
        for name in ("limit", "offset")
        for word in ["", "1_0", "+1", "%2B1", "1.0", "%00", "%ff", "ten", "%F0%9F%92%A9", "NaN", "%20"]
    ],
    get("/heroes/?limit=0&limit=1", 200, [hero()]),
    get("/heroes/?limit=1&%00=%ff&=&&;unknown", 200, [hero()]),
]

NUMBERS = [
    post("an age of 5", written(',"age":5'), 200, hero(2, age=5)),
    post("an age of 5.0", written(',"age":5.0'), 200, hero(3, age=5)),
    post("an age of 1e1", written(',"age":1e1'), 200, hero(4, age=10)),
    post("an age of -0.0", written(',"age":-0.0'), 200, hero(5, age=0)),
    post("the highest age", written(',"age":2147483647'), 200, hero(6, age=2**31 - 1)),
    *[
        post(f"an age of {age}", written(f',"age":{age}'), 422, invalid("int_type", NO_INTEGER, "body", "age"))
        for age in [
            "5.5",
            '"5"',
            '""',
            "true",
            "false",
            "[]",
            "{}",
            "[5]",
            "1e400",
            "-1e400",
            "NaN",
            "Infinity",
            "-Infinity",
            '"NaN"',
            r'"\ud800"',
        ]
    ],
    post("an age of -1", written(',"age":-1'), 422, at_least(0, "body", "age")),
    *[
        post(f"an age of {age[:20]}", written(f',"age":{age}'), 422, at_most(2**31 - 1, "body", "age"))
        for age in ["2147483648", "4294967296.0", "9223372036854775808", "1e300", "9" * 4_000]
    ],
    post("an age of 5,000 digits", written(',"age":' + "9" * 5_000), 400, detail(NOT_PARSED)),
    post("an unknown number of 5,000 digits", written(',"x":' + "9" * 5_000), 400, detail(NOT_PARSED)),
]

TEXTS = [
    post("an empty name", written(name='""'), 422, invalid("string_too_short", TOO_SHORT, "body", "name")),
    post("a name of 255", written(name='"' + "\N{ROCKET}" * 255 + '"'), 200, hero(7, "\N{ROCKET}" * 255)),
    post(
        "a name of 256", written(name='"' + "x" * 256 + '"'), 422, invalid("string_too_long", TOO_LONG, "body", "name")
    ),
    post("a name of 9 KB", written(name=f'"{NOISE}"'), 422, invalid("string_too_long", TOO_LONG, "body", "name")),
    post("a name of spaces", written(name='"  "'), 200, hero(8, "  ")),
    post("a name of a line", written(name=r'"\n\t\u007f\u2028"'), 200, hero(9, "\n\t\x7f\u2028")),
    post("a pair of surrogates", written(name=r'"\ud83d\ude80"'), 200, hero(10, "\N{ROCKET}")),
    *[
        post(f"{field} with a NUL", written(**{field: r'"a\u0000b"'}), 422, response_body)
        for field in ("name", "secret_name")
        if (response_body := invalid("string_pattern_mismatch", HAS_NUL, "body", field))
    ],
    *[
        post(f"{field} of {text}", written(**{field: f'"{text}"'}), 422, response_body)
        for field in ("name", "secret_name")
        for text in (r"\ud800", r"a\udfffb", r"\udc00\ud800")
        if (response_body := invalid("string_unicode", NO_UNICODE, "body", field))
    ],
    *[
        post(f"a name of type {value}", written(name=value), 422, invalid("string_type", NO_STRING, "body", "name"))
        for value in ["null", "1", "true", "NaN", "[]", "{}", r'["\ud800"]', r'{"\ud800":1}', '["Dive Wilson"]']
    ],
    post("a surrogate as a key", written(r',"\ud800":1'), 200, hero(11)),
    post("a NUL as a key", written(r',"\u0000":1'), 200, hero(12)),
    post("the same key twice", written(',"name":"Second"'), 200, hero(13, "Second")),
    post("keys in capitals", '{"NAME":"a","secret_name":"b"}', 422, invalid("missing", MISSING, "body", "name")),
    post("__proto__", written(',"__proto__":{"age":1},"__class__":"x"'), 200, hero(14)),
]

BODIES = [
    post("nothing", "", 422, invalid("missing", MISSING, "body")),
    *[
        post(body, body, 422, invalid("model_attributes_type", NO_OBJECT, "body"))
        for body in ["null", "[]", '"x"', "1", "true", "NaN", "-Infinity", "1e400", nested(10), f"[{written()}]"]
    ],
    post("100 levels in a hero", written(f',"x":{nested(100)}'), 200, hero(15)),
    *[
        depends_on_python(
            post(f"{depth} levels", nested(depth), 422, invalid("model_attributes_type", NO_OBJECT, "body"))
        )
        for depth in [100, 900, 1_000, 3_000, 20_000, 100_000, 200_000]
    ],
    *[
        depends_on_python(post(f"{len(body)} of {body[:20]}", body, 422, malformed(len(body))))
        for body in ["[" * 33, "[" * 500, "[" * 5_000, '{"a":' * 2_000, '{"[":' * 33]
    ],
    depends_on_python(post("2,000 levels and NaN", "[" * 2_000 + "NaN", 422, malformed(2_003))),
    depends_on_python(
        post("2,000 levels and half a string", "[" * 2_000 + '"' + "\\\\" * 9_999, 422, malformed(2_000))
    ),
    post("2,000 levels and 5,000 digits", "[" * 2_000 + "9" * 5_000, 400, detail(NOT_PARSED)),
    post(
        "brackets in a string",
        written(name='"' + "[" * 40 + r"\\\"" + "]" * 40 + '"'),
        200,
        hero(16, "[" * 40 + '\\"' + "]" * 40),
    ),
    post("many shallow brackets", written(',"x":[' + "[],{}," * 99 + "1]"), 200, hero(17)),
    post("{", "{", 422, malformed(1)),
    depends_on_python(post("a trailing comma", written(","), 422, malformed(47)), 422, malformed(46)),
    depends_on_python(post("a trailing comma in a list", "[1, ]", 422, malformed(4)), 422, malformed(2)),
    post("closing brackets", "]" * 40, 422, malformed(0)),
    post("a string without an end", '"' + r"\"" * 9_999, 422, malformed(0)),
    post("half a hero", written()[:-1], 422, malformed(46)),
    post("a hero and more", written() + "x", 422, malformed(47)),
    post("two heroes", written() * 2, 422, malformed(47)),
    post("a bare line break", written(name='"a\nb"'), 422, malformed(10)),
    post("single quotes", "{'name': 'x'}", 422, malformed(1)),
    post("a form", "name=Deadpond&secret_name=x", 422, malformed(0)),
    post("latin-1", written(name='"Zo\xeb"').encode("latin-1"), 400, detail(NOT_PARSED)),
    post("half a character", b'{"name":"\xf0\x9f"}', 400, detail(NOT_PARSED)),
    post(
        "an encoded surrogate",
        written(name='"\ud800"').encode("utf-8", "surrogatepass"),
        422,
        invalid("string_unicode", NO_UNICODE, "body", "name"),
    ),
    post("overlong UTF-8", b'{"name":"\xc0\x80"}', 400, detail(NOT_PARSED)),
    post("zeros", b"\0" * 10, 400, detail(NOT_PARSED)),
    post("gzip", b"\x1f\x8b\x08\0\0\0\0\0", 400, detail(NOT_PARSED)),
    post("a byte order mark", written().encode("utf-8-sig"), 200, hero(18)),
    post("UTF-16", written().encode("utf-16"), 200, hero(19)),
    post("half of UTF-16", written().encode("utf-16")[:-1], 400, detail(NOT_PARSED)),
]

CONTENT_TYPES = [
    *[
        post(f"as {kind}", written(), 422, invalid("json_type", NO_JSON, "body"), {"Content-Type": kind})
        for kind in ["text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data", "json", ";"]
    ],
    post("as nothing", written(), 422, invalid("json_type", NO_JSON, "body"), {}),
    post("noise as nothing", b"\xff\0\xfe", 422, invalid("json_type", NO_JSON, "body"), {}),
    post("as utf-99", written(), 200, hero(20), {"Content-Type": "application/json; charset=utf-99"}),
    post("as JSON of a kind", written(), 200, hero(21), {"Content-Type": "application/vnd.api+json"}),
    post("as JSON in capitals", written(), 200, hero(22), {"Content-Type": "APPLICATION/JSON"}),
]

CHANGES = [
    patch("nothing sent", "", 422, invalid("missing", MISSING, "body")),
    patch("{}", "{}", 200, hero()),
    patch("unknown fields", '{"nmae":"x","id":7}', 200, hero()),
    *[
        patch(f"a {field} of null", f'{{"{field}":null}}', 422, invalid("string_type", NO_STRING, "body", field))
        for field in ("name", "secret_name")
    ],
    patch("an age of null", '{"age":null}', 200, hero()),
    patch(
        "a good age and a bad name", '{"age":5,"name":""}', 422, invalid("string_too_short", TOO_SHORT, "body", "name")
    ),
    patch("an age of 2^31", '{"age":2147483648}', 422, at_most(2**31 - 1, "body", "age")),
    patch("a name with a NUL", r'{"name":"\u0000"}', 422, invalid("string_pattern_mismatch", HAS_NUL, "body", "name")),
    patch("a surrogate", r'{"name":"\ud800"}', 422, invalid("string_unicode", NO_UNICODE, "body", "name")),
    patch("an age of NaN", '{"age":NaN}', 422, invalid("int_type", NO_INTEGER, "body", "age")),
    patch("an unknown NaN", '{"x":NaN}', 200, hero()),
    *[
        depends_on_python(patch(f"{depth} levels in an unknown field", f'{{"x":{nested(depth)}}}', 200, hero()))
        for depth in [100, 900, 3_000, 100_000]
    ],
    Case("PATCH 2^63", "PATCH", "/heroes/9223372036854775808", 422, at_most(2**63 - 1, "path", "hero_id"), b"{}"),
    Case("PATCH two things wrong", "PATCH", "/heroes/x", 422, BOTH_WRONG, b"{}", (("Content-Type", "text/plain"),)),
    Case("DELETE 2^63", "DELETE", "/heroes/9223372036854775808", 422, at_most(2**63 - 1, "path", "hero_id")),
    Case("DELETE with a body", "DELETE", "/heroes/99", 404, detail(NOT_FOUND), b"[" * 1000),
    get("/heroes/1", 200, hero()),
]

METHODS = [
    Case(f"{method} {target}", method, target, 405, detail("Method Not Allowed"))
    for method in ("PUT", "TRACE", "PROPFIND")
    for target in ("/heroes", "/heroes/", "/heroes/1", "/livez", "/readyz", "/")
]

CASES = [*PATHS, *QUERIES, *NUMBERS, *TEXTS, *BODIES, *CONTENT_TYPES, *CHANGES, *METHODS]
