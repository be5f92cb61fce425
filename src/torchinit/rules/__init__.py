"""Rules: where: selectors, the names that recipes can say, and why a rule matched nothing."""

from __future__ import annotations
