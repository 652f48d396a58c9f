"""Build hook: the rules travel compiled, so that the first run after an install is as fast as the tenth."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RulesHook(BuildHookInterface):
    """Compiles `rules/` into `rules/.compiled` and adds the data files to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before each wheel is put together, also the one behind an editable install."""
        root = Path(self.root)
        sys.path.insert(0, str(root))
        from compatkit.knowledge.compile import compile_tree

        compile_tree(root / "rules", root / "rules" / ".compiled")
        if version == "standard":  # an editable install reads the checkout itself: a copy beside it would go stale
            build_data["force_include"] |= {
                str(root / "rules"): "compatkit/_data/rules",  # with .compiled
                str(root / "reports" / "templates"): "compatkit/_data/reports/templates",
                str(root / "reports" / "locale"): "compatkit/_data/reports/locale",
            }
