"""Who may be paid: the rules (`dsl`), and their verdict on one payment (`engine`). Nothing here pays, or asks anybody."""

from __future__ import annotations

from .dsl import Policy, PolicyRule, RuleMatch
from .engine import Verdict, evaluate

__all__ = ["Policy", "PolicyRule", "RuleMatch", "Verdict", "evaluate"]
