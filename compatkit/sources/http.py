"""A file behind HTTP: one ranged request at first, more only for what is still missing."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from compatkit.sources.address import redacted
from compatkit.sources.client import SLOWEST, Answer, ClientError, Head, origin
from compatkit.sources.naming import counted
from compatkit.sources.ranged import FIRST, LARGEST, RangedSource
from compatkit.sources.trouble import trouble
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources.cache import Entry
    from compatkit.sources.network import Network

#: The first read where the need is known to be small.
_LEAST = 4 << 10
#: A server that sends the whole file in place of a range is believed up to so many bytes, and refused beyond.
WHOLE = 256 << 10
#: Beyond that a look at the start tells a web page from a file.
_LOOK = 4096
#: A read that breaks off is taken up again so often, and once more for every such piece of it.
_RESUMES, _PROGRESS = 3, 32 << 10
_RANGE = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\s*", re.I)
_FIX_RANGE = "Download the file and check it on disk, or give another link to it."
_FIX_LATER = "Try again later, or check the file on disk."


class HttpSource(RangedSource):
    """One file behind a URL. Implements `Source`.

    What was read stays in memory and, where the server names the version (ETag, Last-Modified), in the header cache.
    Raises `SourceError`, with the `file/…` problem to report, if there is no such file or the server does not play
    along.
    """

    #: See `Source.workers`.
    workers = 16

    def __init__(
        self,
        network: Network,
        url: str,
        name: str | None = None,
        *,
        pinned: str = "",
        first: int = 0,
        whole: int = 0,
    ) -> None:
        is_json = urlsplit(url).path.lower().endswith(".json")  # which is always read to its end
        super().__init__(max(_LEAST, min(first, LARGEST)) if first else LARGEST if is_json else FIRST)
        self.name = name or redacted(url)
        self.url = url
        self.network = network
        self.size = 0
        self.etag = ""
        self.modified = ""
        self.pinned = pinned  # what names this version for ever, such as a commit
        self._most = whole  # not 0: no range is asked for, and the whole body taken up to so many bytes
        self._direct = ""  # where a redirect to another host led
        self._tag = ""  # the ETag beside the bytes themselves; behind a redirect not the one above
        self._same = False  # a redirect said that the cached version is the current one
        self._entry: Entry | None = None
        self._kept = 0  # bytes that the cache has
        self._open()

    # -- what a kind of server may add --------------------------------------------------------------------------------

    def token(self) -> str:
        """The token for this URL's own host; none."""
        return ""

    def learn(self, head: Head) -> bool:
        """Looks at a redirect on the way to the file; whether it says that the cached version is still the current
        one."""
        return False

    def refusal(self, head: Head) -> SourceError | None:
        """A better explanation of an error status than the general one."""
        return None

    # -- Source -------------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        return f"{self.url}|{self.size}|{self.pinned or self.etag or self.modified}"

    def sibling(self, name: str, first: int = 0) -> HttpSource | None:
        """See `Source.sibling`."""
        if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
            return None
        parts = urlsplit(self.url)
        path = parts.path[: parts.path.rfind("/") + 1] + quote(name)
        try:
            return HttpSource(self.network, urlunsplit(parts._replace(path=path)), first=first)
        except SourceError as e:
            if e.problem and e.problem.rule == "file/not-found":
                return None
            raise

    def close(self) -> None:
        """See `Source.close`. What was read goes to the cache."""
        validated = self.pinned or self.etag or self.modified
        if validated and self.spans.total > self._kept:
            self.network.cache.put(self.url, self.name, self.size, self.etag, self.modified, self.pinned, self.spans)
            self._kept = self.spans.total

    # -- how --------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        entry = self._entry = self.network.cache.get(self.url)
        if entry and (self.network.offline or (self.pinned and entry.pinned == self.pinned)):
            self._believe(entry)
            return
        if entry and (entry.etag or entry.modified):
            # a server that knows no conditions sends one byte and the version
            answer = self._get(0, 1, self._conditions(entry))
            if answer.head.status == 304 or self._unchanged(answer, entry):
                self._believe(entry)
                return
            self._entry = None
            self._first(answer, 1)
            return
        self._entry = None
        deadline = time.monotonic() + self.network.client(self.name).total
        answer = self._get(0, self._start, deadline=deadline)
        self._first(answer, self._start, deadline + len(answer.body) / SLOWEST)

    @staticmethod
    def _conditions(entry: Entry) -> dict[str, str]:
        if entry.etag:
            return {"If-None-Match": entry.etag}
        return {"If-Modified-Since": entry.modified}

    def _unchanged(self, answer: Answer, entry: Entry) -> bool:
        if self._same:
            return True
        etag, modified = answer.head.headers.get("etag", ""), answer.head.headers.get("last-modified", "")
        same = etag == entry.etag if entry.etag else modified == entry.modified
        found = _RANGE.fullmatch(answer.head.headers.get("content-range", ""))
        if answer.head.status == 200:  # the whole body was sent in vain, but it is here
            return False
        return same and answer.head.status == 206 and found is not None and found[3] == str(entry.size)

    def _believe(self, entry: Entry) -> None:
        self.size, self.etag, self.modified, self.spans = entry.size, entry.etag, entry.modified, entry.spans
        self._kept = entry.spans.total

    def _get(
        self, start: int, end: int, conditions: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> Answer:
        client = self.network.client(self.name)
        deadline = time.monotonic() + client.total if deadline is None else deadline
        headers = {} if self._most else {"Range": f"bytes={start}-{end - 1}"}
        headers |= conditions or {}

        def plan(head: Head) -> int:
            if head.status in range(300, 400):
                self._same = self.learn(head)
                return -1 if self._same else 0
            if head.status == 206:
                return end - start
            if head.status == 200 and start == 0:
                declared = head.headers.get("content-length", "")
                if self._most:
                    return self._most
                return WHOLE if not declared.isdigit() or int(declared) <= WHOLE else _LOOK
            return 0

        try:
            answer = None
            if self._direct:
                answer = client.get(self._direct, headers, plan, deadline=deadline)
                if answer.head.status in (401, 403, 404, 410):  # a signed link that has run out
                    self._direct, answer = "", None
            if answer is None:
                answer = client.get(self.url, headers, plan, self.token(), deadline)
                for hop in answer.hops:
                    self.learn(hop)
                if origin(answer.head.url) != origin(self.url):
                    self._direct = answer.head.url
                else:
                    self.learn(answer.head)
        except ClientError as e:
            raise trouble("file/unreachable", self.name, e.what, _FIX_LATER) from None
        if answer.head.status >= 400 and not (answer.head.status == 416 and start == 0):
            raise self._refused(answer.head)
        return answer

    def _first(self, answer: Answer, asked: int, deadline: float | None = None) -> None:
        """Takes the size and the first bytes from the answer to the first request."""
        head = answer.head
        self.etag = self.etag or head.headers.get("etag", "")
        self.modified = head.headers.get("last-modified", "")
        if head.status == 416:
            if head.headers.get("content-range", "").replace(" ", "") != "bytes*/0":
                raise trouble(
                    "file/no-range", self.name, "could not be read: the server refuses every range (416)", _FIX_RANGE
                )
            return
        if head.status == 200:
            self._whole(answer)
            return
        if head.status != 206:
            raise self._refused(head)
        total = self._checked(answer, 0, asked)
        self.size = total
        self._same_tag(head)
        self.spans.add(0, answer.body)
        want = min(self._start if asked > 1 else 1, total)
        if len(answer.body) < want:
            self._fetch(len(answer.body), want, answer.cut, deadline)

    def _whole(self, answer: Answer) -> None:
        """A server that sent the whole file: believed if it was small and came to its end."""
        from compatkit.sources.pages import is_page

        if answer.head.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise self._no_range("the server sends it compressed, which no range can be cut from")
        if not answer.whole:
            if is_page(answer.body):
                raise trouble(
                    "file/web-page",
                    self.name,
                    "is a web page (HTML), not a file",
                    "Give the direct link of the file; if the page asks for it, log in or accept the licence first.",
                )
            if answer.cut:
                raise trouble("file/unreachable", self.name, f"could not be read: {answer.cut}", _FIX_LATER)
            raise self._no_range("the server ignores the range asked for and sends the whole file")
        self.size = len(answer.body)
        self.spans.add(0, answer.body)

    def _no_range(self, why: str) -> SourceError:
        return trouble("file/no-range", self.name, f"could not be read: {why}", _FIX_RANGE)

    def _checked(self, answer: Answer, start: int, end: int) -> int:
        """Holds a 206 to what was asked; the file's size."""
        head = answer.head
        found = _RANGE.fullmatch(head.headers.get("content-range", ""))
        if head.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise self._no_range("the server sends it compressed, which no range can be cut from")
        if not found:
            raise self._no_range("the server does not say which bytes it sent (no Content-Range)")
        first, last = int(found[1]), int(found[2])
        if found[3] == "*":
            raise self._no_range("the server does not say how large the file is")
        total = int(found[3])
        if first != start or last < first or last >= total:
            raise self._no_range(
                f"the server sent bytes {first:,}..{last:,} of {total:,} where {start:,}.. were asked for"
            )
        declared = head.headers.get("content-length", "")
        if declared.isdigit() and int(declared) != last - first + 1:
            raise self._no_range(
                f"the server announces {counted(int(declared), 'byte')} of body for a range of {last - first + 1:,}"
            )
        return total

    def _fetch(self, start: int, end: int, why: str = "", deadline: float | None = None) -> None:
        """Brings the bytes `start … end` in, in as few requests as the server allows, none of them twice.

        All of them together have the time of one: only what comes earns more.
        """
        if deadline is None:
            deadline = time.monotonic() + self.network.client(self.name).total
        for _ in range(_RESUMES + (end - start) // _PROGRESS):
            if why and time.monotonic() >= deadline:
                break
            answer = self._get(start, end, deadline=deadline)
            head = answer.head
            if head.status != 206:
                if head.status == 416:
                    raise self._changed()
                raise self._no_range(f"the server answers a range with status {head.status}")
            total = self._checked(answer, start, end)
            if total != self.size or not self._same_tag(head):
                raise self._changed()
            self.spans.add(start, answer.body)
            start += len(answer.body)
            deadline += len(answer.body) / SLOWEST
            if start >= end:
                return
            why = answer.cut or "the server sends less than was asked for"
            if not answer.body and not answer.cut:
                break
        raise trouble(
            "file/unreachable",
            self.name,
            f"could not be read: {why}, {end - start:,} bytes short of byte {end:,}",
            _FIX_LATER,
        )

    def _same_tag(self, head: Head) -> bool:
        """Whether the bytes of this answer are of the version that those before were."""
        tag = head.headers.get("etag", "")
        before, self._tag = self._tag, tag or self._tag
        return not (tag and before) or tag == before

    def _changed(self) -> SourceError:
        return trouble(
            "file/unreachable", self.name, "changed on the server while it was being read", "Try again in a moment."
        )

    def _refused(self, head: Head) -> SourceError:
        if better := self.refusal(head):
            return better
        status = head.status
        if status in (404, 410):
            return trouble("file/not-found", self.name, f"does not exist: the server says {status}", "Check the link.")
        if status in (401, 403, 407, 451):
            return trouble(
                "file/gated",
                self.name,
                f"may not be read: the server says {status}",
                "Log in there and give a link that needs no password, or download the file and check it on disk.",
            )
        if status == 429:
            wait = head.headers.get("retry-after", "")
            when = f" and asks to wait {wait} seconds" if wait.isdigit() and len(wait) < 7 else ""
            return trouble(
                "file/unreachable",
                self.name,
                f"could not be read: the server has too many requests (429){when}",
                _FIX_LATER,
            )
        return trouble(
            "file/unreachable", self.name, f"could not be read: the server answers with status {status}", _FIX_LATER
        )
