//! The format as a JSON Schema, for editors. What a schema can't say (host bits, unreachable
//! rules, trust domains) only `check` tells.

use serde_json::{Value, json};

use super::lint::SERVER_FIRST;
use super::parse::{API_VERSION, KIND, RESERVED_NAMES};

/// The JSON Schema (draft 2020-12) of a policy file.
#[must_use]
pub fn json_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pillion sidecar policy",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "inbound", "outbound"],
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": KIND},
            "metadata": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name"],
                "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 253}},
            },
            "enforcement": {
                "enum": ["enforce", "audit"],
                "default": "enforce",
                "description": "audit reports what authorization would deny; TLS is never relaxed",
            },
            "trustDomains": {
                "type": "array", "minItems": 1, "items": {"type": "string"},
                "description": "domains whose peers are accepted; by default our own alone",
            },
            "inbound": inbound(),
            "outbound": outbound(),
        },
        "$defs": {
            "name": {
                "type": "string",
                "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
                "not": {"enum": RESERVED_NAMES},
            },
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "ports": {
                "type": "array", "minItems": 1, "items": {"$ref": "#/$defs/port"},
                "description": "absent: every port",
            },
            "mode": {
                "enum": ["strict", "permissive", "disable"],
                "description": format!("permissive is an error on {SERVER_FIRST:?}"),
            },
            "cidr": {"type": "string", "description": "a CIDR without host bits, or an address"},
            "ipBlocks": {"type": "array", "minItems": 1, "items": {"oneOf": [
                {"$ref": "#/$defs/cidr"},
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["cidr"],
                    "properties": {
                        "cidr": {"$ref": "#/$defs/cidr"},
                        "except": {"type": "array", "items": {"$ref": "#/$defs/cidr"}},
                    },
                },
            ]}},
            "identities": {
                "type": "array", "minItems": 1, "items": {"type": "string"},
                "description": "spiffe://domain/path, with * for one segment and a final /** for \
                                one or more; or namespace/service-account",
            },
        },
    })
}

fn inbound() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["mtls", "defaultAction"],
        "properties": {
            "mtls": {"$ref": "#/$defs/mode"},
            "defaultAction": {"enum": ["allow", "deny"]},
            "ports": {
                "type": "object",
                "propertyNames": {"pattern": "^[1-9][0-9]{0,4}$"},
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["mtls"],
                    "properties": {"mtls": {"$ref": "#/$defs/mode"}},
                },
            },
            "appAddress": {"enum": ["podIP", "127.0.0.1"], "default": "podIP"},
            "probes": {"type": "array", "items": {
                "type": "object",
                "additionalProperties": false,
                "required": ["port", "path"],
                "properties": {
                    "port": {"$ref": "#/$defs/port"},
                    "path": {"type": "string", "pattern": "^/"},
                },
            }},
            "rules": {"type": "array", "items": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name", "action", "from"],
                "properties": {
                    "name": {"$ref": "#/$defs/name"},
                    "action": {"enum": ["allow", "deny"]},
                    "mode": {"enum": ["enforce", "audit"], "default": "enforce"},
                    "ports": {"$ref": "#/$defs/ports"},
                    "from": {"type": "array", "minItems": 1, "items": {
                        "type": "object",
                        "additionalProperties": false,
                        "minProperties": 1,
                        "properties": {
                            "any": {"const": true},
                            "ipBlocks": {"$ref": "#/$defs/ipBlocks"},
                            "identities": {"$ref": "#/$defs/identities"},
                        },
                    }},
                },
            }},
        },
    })
}

fn outbound() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["defaultAction"],
        "properties": {
            "defaultAction": {"enum": ["passthrough", "deny"]},
            "destinations": {"type": "array", "items": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name", "action"],
                "properties": {
                    "name": {"$ref": "#/$defs/name"},
                    "hosts": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    "ipBlocks": {"$ref": "#/$defs/ipBlocks"},
                    "ports": {"$ref": "#/$defs/ports"},
                    "action": {"enum": ["mtls", "passthrough", "deny"]},
                    "serverIdentities": {"$ref": "#/$defs/identities"},
                    "tunnelReuse": {
                        "type": "boolean", "default": true,
                        "description": "false: one TLS connection for each connection",
                    },
                },
                "anyOf": [{"required": ["hosts"]}, {"required": ["ipBlocks"]}],
                "if": {"properties": {"action": {"const": "mtls"}}},
                "then": {"required": ["serverIdentities"]},
            }},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SECTIONS;
    use crate::reader::Section;

    fn at<'v>(root: &'v Value, pointer: &str) -> &'v Value {
        root.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"))
    }

    /// The schema and the reader know the same keys and require the same.
    #[test]
    fn the_schema_has_the_readers_keys() {
        let schema = json_schema();
        let inbound = "/properties/inbound";
        let outbound = "/properties/outbound";
        let place = |section: &Section| match section.path {
            "" => String::new(),
            "metadata" => "/properties/metadata".to_owned(),
            "inbound" => inbound.to_owned(),
            "inbound.ports.<port>" => format!("{inbound}/properties/ports/additionalProperties"),
            "inbound.probes[]" => format!("{inbound}/properties/probes/items"),
            "inbound.rules[]" => format!("{inbound}/properties/rules/items"),
            "inbound.rules[].from[]" => {
                format!("{inbound}/properties/rules/items/properties/from/items")
            }
            "ipBlocks[]" => "/$defs/ipBlocks/items/oneOf/1".to_owned(),
            "outbound" => outbound.to_owned(),
            "outbound.destinations[]" => format!("{outbound}/properties/destinations/items"),
            other => panic!("{other} has no place in the schema"),
        };
        for section in SECTIONS {
            let mapping = at(&schema, &place(section));
            let mut have: Vec<_> =
                mapping["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            let mut want: Vec<_> = section.keys.iter().map(|(key, _)| *key).collect();
            have.sort_unstable();
            want.sort_unstable();
            assert_eq!(have, want, "{}", section.path);
            assert_eq!(mapping["additionalProperties"], false, "{}", section.path);
            let required: Vec<_> = mapping["required"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(Value::as_str)
                .collect();
            let wanted: Vec<_> =
                section.keys.iter().filter(|(_, needed)| *needed).map(|(key, _)| *key).collect();
            assert_eq!(required, wanted, "{}", section.path);
        }
    }
}
