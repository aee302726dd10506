"""What an operator may set: `additional_config["saga_http"]`. Keys stand there as SHA-256, never in clear."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.runtime.sessions.hints import proof_of

KEY = "saga_http"
SALT_VARIABLE = "SAGA_RL_TENANT_SALT"


@dataclass(frozen=True)
class Settings:
    chains: bool = True
    """Find sessions by their prefix chain where nothing names them."""
    notes: bool = True
    """Tell the engines which tool an answer called."""
    tenants: dict[str, str] = field(default_factory=dict)
    """SHA-256 (hex) of an API key -> tenant. Other keys get a tenant of their own, named by a salted hash."""
    tenant_header: str | None = None
    """A header set by a gateway in front, which must drop it from what clients send. Above the API key."""
    tenant_in_body: bool | None = None
    """Whether `saga_tenant` in a body counts; None: only where the server has no API keys."""
    ignored_headers: tuple[str, ...] = ()
    """Headers that name no session here, whatever they say."""
    cache_salt: bool = False
    """A `cache_salt` per tenant: nobody finds another tenant's prefixes by timing."""
    most_bytes: int = 32 * 2**20
    """Longer bodies are not read for hints."""
    most_nodes: int = 65_536
    """Prompts remembered; the ones unheard of for longest go first."""


def read_settings(additional_config: Any) -> Settings:
    """`UserError` for unknown keys and values of the wrong kind."""
    raw = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    where = f"additional_config[{KEY!r}]"
    if not isinstance(raw, Mapping):
        raise UserError(where, f"is {type(raw).__name__}, not an object", "give keys and values")
    known = {f.name for f in fields(Settings)}
    for key in raw:
        if key not in known:
            raise unknown_name(f"key of {where}", key, known)
    names = raw.get("ignored_headers", ())
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{where}, ignored_headers", f"is {names!r}", 'give a list of names, e.g. ["X-Session-ID"]')
    s = Settings(**{**raw, "ignored_headers": tuple(names)})
    for key in ("chains", "notes", "cache_salt", "tenant_in_body"):
        value = getattr(s, key)
        if not isinstance(value, bool) and not (value is None and key == "tenant_in_body"):
            raise UserError(f"{where}, {key}", f"is {value!r}", "give true or false")
    for key in ("most_bytes", "most_nodes"):
        value = getattr(s, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}, {key}", f"is {value!r}", "give a whole number above 0")
    if s.tenant_header is not None and not (isinstance(s.tenant_header, str) and s.tenant_header):
        raise UserError(f"{where}, tenant_header", f"is {s.tenant_header!r}", "name a header, or leave it out")
    if not isinstance(s.tenants, dict) or not all(
            isinstance(k, str) and len(k) == 64 and not set(k) - set("0123456789abcdef") and isinstance(v, str) and v
            for k, v in s.tenants.items()):
        raise UserError(f"{where}, tenants", "is not a map of SHA-256 (64 hex digits) to names",
                        'take the key\'s hash: printf %s "$KEY" | sha256sum')
    return s


class Tenants:
    """Names tenants. server_keys: the API keys that vLLM accepts (it checked them before us), perhaps none."""

    def __init__(self, settings: Settings, server_keys: Iterable[str]) -> None:
        keys = sorted(server_keys)
        self.settings, self.keyed = settings, bool(keys)
        self.header = settings.tenant_header.lower().encode() if settings.tenant_header else None
        given = os.environ.get(SALT_VARIABLE, "")
        self._secret = hashlib.sha256("\0".join(["saga-rl", given, *keys]).encode()).digest()
        self.proof_key = os.urandom(32).hex()
        """Of this process. Its engines are told, and believe what carries a proof made with it."""
        self._known: dict[str, str] = {}
        body = settings.tenant_in_body
        self.body_counts = body if body is not None else not (self.keyed or self.header)
        if settings.cache_salt and not keys and not given:
            self._secret = os.urandom(32)  # nothing secret is at hand: salts of this process only

    @property
    def strict(self) -> bool:
        """Whether a client must not name its own tenant."""
        return not self.body_counts

    def of(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The tenant of a request that its client cannot forge; None: nothing says."""
        if self.header is not None:
            named = headers.get(self.header, b"").decode("latin-1").strip()
            if named:
                return named[:200]
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return None
        if key not in self._known:
            name = self.settings.tenants.get(hashlib.sha256(key.encode("latin-1")).hexdigest())
            if name is None:
                if not self.keyed:
                    return None  # keys that nobody checks (SDKs send any) say nothing
                name = "key-" + self._hash("key", key)[:12]
            if len(self._known) >= 4096:
                self._known.clear()
            self._known[key] = name
        return self._known[key]

    def proof(self, tenant: str | None) -> str:
        """What shows an engine that this server, and no client, named the tenant (None: `default`)."""
        return proof_of(self.proof_key, tenant or "default")

    def own_name(self, tenant: str, session: str) -> str:
        """A tenant's session among all tenants' sessions: no two pairs have one name."""
        return f"{tenant.replace('%', '%25').replace('/', '%2F')}/{session}"

    def salt(self, tenant: str | None, given: str | None) -> str:
        """64 hex digits for a tenant and the salt that its client gave, if any."""
        return self._hash("salt", tenant or "default", given or "")

    def _hash(self, *parts: str) -> str:
        text = "\0".join(f"{len(p)}:{p}" for p in parts)
        return hmac.new(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
