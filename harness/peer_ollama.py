"""Ollama as a peer, through its HTTP API (docs/api.md): counts and durations that the server itself reports."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from harness.inference import Point
from harness.peers import Job, PeerError
from vkbackend.errors import InputError, shown

DEFAULT_URL = "http://127.0.0.1:11434"
_QUICK_S, _LONG_S = 10, 6 * 3600  # of a question about the server, of a prompt of any length
_SPARE = 64  # tokens of context beside prompt and answer, as a text may become a few tokens more
_CUT = 0.9  # a prompt of which less than this share was read was cut


@dataclass
class Ollama:
    """A model of a running server. It takes text, so that a context is as long as it says, not as was asked."""

    name: str
    model: str
    url: str
    version: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def connect(cls, name: str, where: str) -> Ollama:
        """'MODEL' or 'MODEL@URL', else at OLLAMA_HOST, as for Ollama's own client. InputError where it is not there."""
        model, _, url = where.partition("@")
        host = os.environ.get("OLLAMA_HOST", "")
        url = url or (host if "://" in host else f"http://{host}" if host else DEFAULT_URL)
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--peer ollama={shown(where)}: found {shown(url)}, expected http://HOST:PORT; correct it")
        peer = cls(name, model, url.rstrip("/"))
        try:
            peer.version = str(peer._ask("/api/version", None, _QUICK_S).get("version", "unknown"))
            peer.details = peer._ask("/api/show", {"model": model}, _QUICK_S).get("details") or {}
        except PeerError as error:
            raise InputError(
                f"--peer ollama={shown(where)}: {error}, expected a server with that model; start it, or import the "
                "model's file there"
            ) from None
        return peer

    def decode(self, job: Job) -> Point:
        found = self._generate(job, job.n_decode)
        count = found["eval_count"]
        return Point(found["prompt_eval_count"] + (count + 1) / 2, 1e9 * count / found["eval_duration"])

    def prompt(self, job: Job) -> float:
        found = self._generate(job, 1)
        return 1e9 * found["prompt_eval_count"] / found["prompt_eval_duration"]

    def about(self) -> str:
        told = ", ".join(str(value) for key, value in self.details.items() if key in ("quantization_level", "family"))
        return f"Ollama {self.version}, model {self.model}" + (f": {told}" if told else "")

    def _generate(self, job: Job, tokens: int) -> dict[str, int]:
        # The context leads the text: another context's cache must not serve this one, but this one's own may.
        body = {
            "model": self.model,
            "prompt": f"{job.context}\n{job.text()}",
            "raw": True,
            "stream": False,
            "options": {"num_ctx": job.context + _SPARE, "num_predict": tokens, "temperature": 0},
        }
        found = self._ask("/api/generate", body, _LONG_S)
        counts = {}
        for name in ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"):
            value = found.get(name)
            if not isinstance(value, int) or value <= 0:
                raise PeerError(f"{self.name} reported {name} {value!r}, expected a count above 0")
            counts[name] = value
        read = counts["prompt_eval_count"]
        if read < _CUT * job.depth:
            raise PeerError(f"{self.name} read {read} tokens of a prompt of about {job.depth}, expected all of them")
        return counts

    def _ask(self, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            words = shown(error.read(200).decode(errors="replace").strip())
            raise PeerError(f"{self.url}{path} answered {error.code} {words}") from None
        except (OSError, ValueError) as error:
            raise PeerError(f"{self.url}{path} gave no answer ({shown(str(error))})") from None
        if not isinstance(found, dict):
            raise PeerError(f"{self.url}{path} answered no object")
        return found
