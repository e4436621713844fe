"""Read a dashboard with Grafana's own data model: ``monitoring_dashboard.py FILE``.

There is no server here. The model drops keys that it does not know without a word, so what it writes
must hold every key and value of the file. Prints the expressions and the dashed lines' values.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(asked: Any, kept: Any, at: str = "") -> list[str]:
    """Return where ``kept`` lacks what ``asked`` has."""
    if isinstance(asked, dict):
        if not isinstance(kept, dict):
            return [at]
        return [
            place
            for key, part in asked.items()
            for place in (lost(part, kept[key], f"{at}/{key}") if key in kept else [f"{at}/{key}"])
        ]
    if isinstance(asked, list):
        if not isinstance(kept, list) or len(kept) != len(asked):
            return [at]
        return [
            place
            for number, (one, other) in enumerate(zip(asked, kept, strict=True))
            for place in lost(one, other, f"{at}/{number}")
        ]
    return [] if asked == kept else [at]


def main(file: str) -> int:
    """Return 0 if every key comes back, else 3."""
    plugins.register_default_plugins()
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        kept = json.loads(JSONEncoder().encode(Dashboard.from_json(asked)))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        print(f"refused: {error!r}")
        return 3
    if places := lost(asked, kept):
        print("not known or changed: " + ", ".join(places))
        return 3
    panels = [panel for panel in kept["panels"] if panel["type"] != "row"]
    rows = [panel["title"] for panel in kept["panels"] if panel["type"] == "row"]
    lines = [query for panel in panels for query in panel["targets"]]
    found = [[query["legendFormat"], query["expr"]] for query in lines]
    print(json.dumps({"title": kept["title"], "rows": rows, "lines": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
