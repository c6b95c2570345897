"""Who may be paid: rules (`dsl`) and what they say of one payment (`engine`). Pure; nothing here pays or asks anyone."""

from __future__ import annotations

from .dsl import Policy, PolicyRule, RuleMatch
from .engine import Verdict, evaluate

__all__ = ["Policy", "PolicyRule", "RuleMatch", "Verdict", "evaluate"]
