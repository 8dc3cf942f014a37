"""Writes what promtool reads, for scripts/kubernetes-examples: the alerts as a rule file, and each query of the dashboard
as a rule of another, with Grafana's variables replaced by what it would put there.

rules.py <folder>
"""

import json
import pathlib
import re
import sys

import yaml

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples/observability"
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$pod": ".*"}


def substituted(query):
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    if "$" in query:
        sys.exit(f"a variable that nothing replaces: {query}")
    return query


def queries(panels):
    for panel in panels:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", []))
        yield from queries(panel.get("panels", []))


def main(folder):
    alerts = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["spec"]
    (folder / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text())
    found = list(queries(dashboard["panels"]))
    rules = [
        {"record": f"panel:{number}:{re.sub('[^a-z]+', '_', title.lower())}", "expr": substituted(query)}
        for number, (title, query) in enumerate(found)
    ]
    (folder / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
