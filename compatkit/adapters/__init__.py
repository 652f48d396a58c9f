"""Adapters: what a LoRA or one of its relatives is, and what it would change in a base."""

from __future__ import annotations

from compatkit.adapters.recognise import MAYBE, ROLE, SURE, recognise, share

__all__ = ["MAYBE", "ROLE", "SURE", "recognise", "share"]
