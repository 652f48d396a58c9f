"""Web pages that stand where a file was asked for."""

from __future__ import annotations


def is_page(start: bytes) -> bool:
    """Whether the first bytes of a body are HTML or XML, as servers send for a login or an error."""
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<error", b"<!--"))
