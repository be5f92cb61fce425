"""Knowledge of layers: the values at which norms do nothing, the nonlinearities that follow, and their gains."""

from __future__ import annotations

from torchinit.knowledge.gains import Profile, gain, profile
from torchinit.knowledge.role_rules import Role, RoleRule, read_rules, register_roles, roles

__all__ = ["Profile", "Role", "RoleRule", "gain", "profile", "read_rules", "register_roles", "roles"]
