"""Holds manifests to the schemas of each Kubernetes version; scripts/kubernetes-validate runs it.

Kinds that Kubernetes itself has are validated by its OpenAPI schemas, with unknown fields as errors. For those of others
(Prometheus Operator, cert-manager, SPIRE, Kustomize) there are schemas in custom.json, of the fields that the examples
use. What has neither is named at the end.
"""

import functools
import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIRST = (1, 29)
# What a version doesn't have yet; before it, the schema has to refuse it.
SINCE = {"podCertificate": (1, 34)}
DEFAULT = ["examples/kubernetes", "examples/observability", "proxy/inject/tests/golden"]
CUSTOM = json.loads((pathlib.Path(__file__).parent / "custom.json").read_text())

# The package reads its files again for each document.
utils.schema_contents = functools.lru_cache(None)(utils.schema_contents)


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML 1.1, as Kubernetes reads it, but a key that is there twice is an error, as for kubectl."""

    def construct_mapping(self, node, deep=False):
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


# PyYAML gives `=` a meaning that Kubernetes' reader doesn't.
Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def files(arguments):
    for argument in arguments:
        path = pathlib.Path(argument)
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".json"))
        else:
            yield path


def resources(path):
    """The resources of a file; those of a list, one by one."""
    for document in yaml.load_all(path.read_text(), Loader=Loader):
        if document is None:
            continue
        if isinstance(document, dict) and document.get("kind", "").endswith("List") and "items" in document:
            yield from document["items"]
        else:
            yield document


def skipped(path, resource):
    """Why a document is no resource, if it isn't one."""
    if path.parent.name == "helm":
        return "values of a chart"
    if path.suffix == ".json" and "schemaVersion" in resource:
        return "a Grafana dashboard; promtool and cargo test check its queries"
    if resource.get("kind") == "SidecarPolicy":
        return "a policy; cargo test checks it"
    if resource.get("kind") == "any":
        return "a patch; what it makes is in built.yaml"
    return None


def since(value):
    """The first version that has all that a resource uses."""
    if isinstance(value, dict):
        own = [SINCE[key] for key in value if key in SINCE]
        return max([FIRST, *own, *(since(item) for item in value.values())])
    if isinstance(value, list):
        return max([FIRST, *(since(item) for item in value)])
    return FIRST


def versions():
    """Each version from FIRST on, as the package names it and as a number."""
    found = ((utils.major_minor(v), tuple(map(int, v.split(".")[:2]))) for v in utils.all_versions())
    return list(dict.fromkeys(pair for pair in found if pair[1] >= FIRST))


def complaint(resource, version):
    """What a version's schema finds wrong; KeyError for a kind that it doesn't know."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
        return None
    except kubernetes_validate.SchemaNotFoundError:
        raise KeyError(resource["kind"]) from None
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def check(resource):
    """All that is wrong with a resource, and whether a schema knows it."""
    custom = CUSTOM.get(f"{resource['apiVersion']} {resource['kind']}")
    if custom:
        errors = jsonschema.Draft202012Validator(custom).iter_errors(resource)
        return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors], True
    first = since(resource)
    found = {}
    for name, number in versions():
        try:
            wrong = complaint(resource, name)
        except KeyError:
            group = resource["apiVersion"].rpartition("/")[0]
            if "." in group and not group.endswith(".k8s.io"):
                return [], False
            wrong = f"no kind {resource['kind']} in {resource['apiVersion']}"
        if number >= first and wrong:
            found.setdefault(wrong, []).append(name)
        if number < first and not wrong:
            found.setdefault("it is there already: correct SINCE in validate.py", []).append(name)
    return [f"Kubernetes {', '.join(names)}: {wrong}" for wrong, names in found.items()], True


def main(arguments):
    chosen = arguments or [path for pattern in DEFAULT for path in sorted(ROOT.glob(pattern))]
    failed, validated, unknown = 0, 0, set()
    for path in files(chosen):
        try:
            for resource in resources(path):
                if not isinstance(resource, dict) or skipped(path, resource):
                    continue
                errors, known = check(resource)
                name = f"{resource['kind']}/{resource['metadata']['name']}" if "metadata" in resource else resource["kind"]
                for error in errors:
                    print(f"{path}: {name}: {error}", file=sys.stderr)
                failed += bool(errors)
                validated += known
                if not known:
                    unknown.add(f"{resource['apiVersion']} {resource['kind']}")
        except (yaml.YAMLError, KeyError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed += 1
    span = [name for name, _ in versions()]
    print(f"{validated} resources, strictly, against Kubernetes {span[0]} to {span[-1]}: {failed} with errors")
    for kind in sorted(unknown):
        print(f"not validated, no schema here: {kind}")
    if not validated:
        print("nothing was validated", file=sys.stderr)
    return 1 if failed or not validated else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
