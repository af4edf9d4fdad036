"""Kinds of values for settings.py: URLs, hosts, secrets, prompts, and the frozen section they stand in.

Does not know which settings exist. Error texts say what is expected and never quote the value: it may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, get_args
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from _settings_sources import Entry, Problem, line_of, masked_text, shown

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def _split_url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    """Raises ValueError that says what is expected and never quotes the value (it may hold a password)."""
    expected = f"a URL such as {schemes[0]}://host:port"
    if any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError(f"{expected}, without spaces")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in schemes and (parts.hostname or parts.scheme == "unix") and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{expected} (scheme {' or '.join(schemes)})")
    return parts


def _http_url(value: str) -> str:
    _split_url(value, ("http", "https"))
    return value.rstrip("/")


def _milvus_url(value: str) -> str:
    try:
        parts = _split_url(value, ("http", "https"))
    except ValueError as error:
        raise ValueError(f"{error}; leave it unset for the embedded store in the data directory") from None
    # "localhost" beside "127.0.0.1" makes two connections under one pymilvus alias, which it refuses.
    userinfo, at, address = parts.netloc.rpartition("@")
    host, colon, port = address.partition(":")
    if host.lower() == "localhost":
        address = f"127.0.0.1{colon}{port}"
    return urlunsplit(parts._replace(netloc=f"{userinfo}{at}{address}")).rstrip("/")


def _redis_url(value: SecretStr) -> SecretStr:
    _split_url(value.get_secret_value(), ("redis", "rediss", "unix"))
    return value


def _header_text(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("printable ASCII, because it travels in an HTTP header")
    return value


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value.strip("[]")))
    except ValueError:
        if not _HOST.fullmatch(value):
            raise ValueError("a host name or IP address, without scheme, port or path") from None
        return value.lower()


def _origin(value: str) -> str:
    parts = _split_url(value, ("http", "https"))
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("an origin such as https://rag.example.org, without path or user")
    return value.rstrip("/").lower()


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value.lower()):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return value.lower()


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _space_separated(value: object) -> object:
    return value.split() if isinstance(value, str) else value


# What an entry of [[machines]] or [[services]] may hold that is nobody's business; `key` is a path.
SECRET_NAMES = frozenset({"api_key", "passphrase", "password", "token", "headers"})
KEY_VARIABLE = "api_key_env"  # the name of the environment variable that holds an entry's api_key


def _entries(value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Tables with a name of their own each; what they hold of secrets is masked from here on (`revealed` gives it back)."""
    names = [entry.get("name") for entry in value]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError("tables that each have a `name` of their own")
    return tuple({key: _hidden(item) if key in SECRET_NAMES else item for key, item in entry.items()} for entry in value)


def _gpu_prices(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each with `eur_month`, `date` and `source`: a price without its date and source is not shown to anybody."""
    for name, entry in value.items():
        eur, date, source = (entry.get(key) for key in ("eur_month", "date", "source"))
        if set(entry) != {"eur_month", "date", "source"}:
            raise ValueError(f"eur_month, date and source for {name[:60]}, and nothing else")
        if isinstance(eur, bool) or not isinstance(eur, int | float) or not 0 <= eur <= 1_000_000:
            raise ValueError(f"euros a month, 0 to 1,000,000, as eur_month of {name[:60]}")
        if not isinstance(date, str) or not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", date):
            raise ValueError(f"a year and month such as 2026-03 as date of {name[:60]}")
        if not isinstance(source, str) or not source.strip() or len(source) > 200:
            raise ValueError(f"a text of at most 200 characters as source of {name[:60]}")
    return value


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    return SecretStr(value) if isinstance(value, str) else value


def revealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its secrets in plain text, for the one that logs in with them."""
    return {key: _shown(item) for key, item in entry.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return revealed(value)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def holds_secret(value: object) -> bool:
    """Whether a list of entries, as a file has it, holds a secret, or sends one of the environment to an address of its own."""
    names = SECRET_NAMES | {KEY_VARIABLE}
    return isinstance(value, list) and any(isinstance(entry, Mapping) and names & entry.keys() for entry in value)


_LOGIN = re.compile(r"(?:[A-Za-z][\w+.-]*://)?[^\s/:@]*:[^\s/]*@\S+")


def holds_login(value: object) -> bool:
    """Whether a value, or what it holds, is an address with a password."""
    if isinstance(value, Mapping):
        return any(holds_login(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_login(item) for item in value)
    return isinstance(value, str) and _LOGIN.fullmatch(value.strip()) is not None


def with_key(
    place: str,
    entry: Any,
    source: Entry,
    variables: Mapping[str, Entry],
    lines: Mapping[str, int],
    problems: list[Problem],
) -> Any:
    """An entry (`services[2]`) with the `api_key` that its `api_key_env` leaves to a variable; as it is where it names none."""
    if not isinstance(entry, Mapping) or KEY_VARIABLE not in entry:
        return entry
    name, key = entry[KEY_VARIABLE], f"{place}.{KEY_VARIABLE}"
    of = f" of {shown(entry['name'])}" if isinstance(entry.get("name"), str) else ""
    at = replace(source, line=line_of(key, lines) or source.line)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Not quoted: somebody may have put the key itself here
        problems.append(at.problem(key, f"no name of a variable{of}", 'the name of one, such as "VLLM_API_KEY", never the key'))
    elif "api_key" in entry:
        problems.append(at.problem(key, f"api_key as well{of}", "one of the two"))
    elif name not in variables:
        step = "export it, or write it into .env"
        problems.append(at.problem(key, f"{name}{of}, which is not set", "a variable with the key in it", step))
    else:
        return {**entry, "api_key": str(variables[name].value).strip()}
    return entry


def key_variables(tables: Iterable[object]) -> list[str]:
    """The variables that entries name for their keys."""
    entries = (entry for table in tables if isinstance(table, Sequence) for entry in table)
    return [entry[KEY_VARIABLE] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get(KEY_VARIABLE), str)]


def _template(*names: str) -> Callable[[str], str]:
    """A check that `str.format` can fill the text with exactly these names."""
    expected = f"a text with {' and '.join(f'{{{name}}}' for name in names)} and no other braces (write {{{{ and }}}} for those)"

    def check(value: str) -> str:
        try:
            fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(value) if name is not None]
        except ValueError:
            raise ValueError(expected) from None
        if {name for name, *_ in fields} != set(names) or any(spec or how for _, spec, how in fields):
            raise ValueError(expected)
        return value

    return check


Text = Annotated[str, Field(min_length=1, max_length=4096)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
HeaderSecret = Annotated[SecretStr, AfterValidator(_header_text)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]
Headers = Mapping[HeaderName, HeaderSecret]
MilvusUrl = Annotated[str, AfterValidator(_milvus_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Hosts = Annotated[tuple[Host, ...], BeforeValidator(_comma_separated)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_comma_separated)]
SecretUrls = Annotated[tuple[SecretStr, ...], BeforeValidator(_space_separated)]
Entries = Annotated[tuple[dict[str, Any], ...], AfterValidator(_entries)]
GpuPrices = Annotated[dict[str, dict[str, Any]], AfterValidator(_gpu_prices)]
Device = Annotated[str, AfterValidator(_device)]
AnswerPrompt = Annotated[str, AfterValidator(_template("question", "passages"))]
HydePrompt = Annotated[str, AfterValidator(_template("question"))]


def setting(
    default: Any, meaning: str, env: str | None = None, answer: bool = False, verbatim: bool = False, **bounds: Any
) -> Any:
    """A field with its meaning, its environment variable, and whether it changes answers (then it is in the fingerprint).

    `verbatim`: blanks at the ends belong to the text.
    """
    extra: dict[str, Any] = {"env": env, "answer": answer, "verbatim": verbatim}
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """Frozen; unknown keys refused; what may be secret is masked in repr, str and validation errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _tidy(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        annotation, extra = field.annotation, field.json_schema_extra
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("no true or false here")  # pydantic would take true as the number 1
        if not isinstance(value, str):
            return value
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("valid Unicode text")  # lone surrogates can be neither sent nor saved
        if not (isinstance(extra, dict) and extra.get("verbatim")):
            value = value.strip()
        return None if not value and type(None) in get_args(annotation) else value

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked_text(value) if isinstance(value, str) else value
