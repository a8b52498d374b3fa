"""String formats of JSON schema as regular expressions.

Each pattern writes only texts that are of the format (RFC 3339, 3986, 6901 and so on); some write fewer than there are. The
engine's own formats are not used: its dates have a 29 February in any year and its times a leap second in any minute.
"""

__all__ = ["FORMATS", "LONGEST"]

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])"
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"  # no leap seconds
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
_PATH = r"(?:/[A-Za-z0-9._~-]*)*"
_REST = r"(?:\?[A-Za-z0-9._~=&-]*)?(?:#[A-Za-z0-9._~/-]*)?"
_SITE = r"https?://[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*(?::[1-9]\d{0,3})?"
_REFERENCE = rf"(?:{_SITE}{_PATH}|[A-Za-z0-9._~-]*(?:/[A-Za-z0-9._~-]+)*/?){_REST}"
_URI = rf"(?:{_SITE}{_PATH}{_REST}|urn:[a-z][a-z0-9]{{1,20}}(?::[A-Za-z0-9._-]+)+|mailto:[A-Za-z0-9._-]+@[A-Za-z0-9.-]+)"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_EMAIL = rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_HOSTNAME}"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_HEX = "[0-9A-Fa-f]"
_H = f"{_HEX}{{1,4}}"
_IPV6 = "|".join([
    f"(?:{_H}:){{7}}{_H}", f"(?:{_H}:){{1,7}}:", "::", f":(?::{_H}){{1,7}}",
    *(f"(?:{_H}:){{1,{7 - n}}}(?::{_H}){{1,{n}}}" for n in range(1, 7)),
])  # fmt: skip
_CLOCK = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DAYS = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P(?:\d+W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOSTNAME,
    "idn-hostname": r"[a-z0-9]{1,40}(?:\.[a-z][a-z0-9]{0,30}){0,4}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": _IPV6,
    "uuid": rf"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _REFERENCE,
    "iri-reference": _REFERENCE,
    "uri-template": rf"{_SITE}(?:/(?:[A-Za-z0-9._~-]*|\{{[A-Za-z0-9_]+\}}))*",
    "json-pointer": _POINTER,
    # No 0 inside or before more, which jsonschema 4.26 takes for a leading one.
    "relative-json-pointer": rf"0|[1-9]{{1,9}}(?:#|{_POINTER})",
    "regex": r"\^?(?:[A-Za-z0-9 _/:-]|\\[dws.])*\$?",
}
"""Format -> pattern, in Python's syntax, of the whole text. The international ones are written in ASCII."""

LONGEST = {"hostname": 253, "email": 254, "idn-email": 254}
"""Format -> characters at most (RFC 1123, RFC 5321), where the pattern does not limit them."""
