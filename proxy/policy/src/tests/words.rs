//! What a file's author reads: the words of errors, their places, and what the policy calls itself.

use super::*;

/// The message of the only error.
fn error(text: &str) -> String {
    let errors = load("t.yaml", text, Some(&own())).unwrap_err();
    assert_eq!(errors.as_slice().len(), 1, "{errors}");
    errors.as_slice()[0].message.clone()
}

#[test]
fn what_stands_there_is_named() {
    for (value, said) in [
        ("", "nothing"),
        ("~", "nothing"),
        ("null", "nothing"),
        ("7", "\"7\""),
        ("[a]", "a list"),
        ("{a: b}", "a mapping"),
    ] {
        let text = file("", &format!("mtls: strict, defaultAction: {value}"), PASS);
        assert!(error(&text).contains(said), "{value}: {}", error(&text));
    }
}

#[test]
fn a_key_is_named_with_where_it_belongs() {
    let said = error(&file("extra: 1", STRICT, PASS));
    assert!(said.starts_with("the document has no key \"extra\""), "{said}");
    let said = error(&rules("{name: a, from: [{any: true}]}"));
    assert_eq!(said, "inbound.rules[] needs the key \"action\"; add it");
}

#[test]
fn text_that_yaml_takes_for_something_else_is_quoted() {
    let named = |name: &str| {
        error(&rules(&format!("{{name: {name}, action: deny, from: [{{any: true}}]}}")))
    };
    for name in ["no", "1.10", "~"] {
        let said = format!("text is needed and {name} is a number, a boolean or null; quote it");
        assert_eq!(named(name), said);
    }
    assert!(named("").contains("nothing"), "{}", named(""));
}

#[test]
fn only_the_two_words_are_truth_values() {
    let to = |reuse: &str| {
        let destination = format!(
            "{{name: d, ipBlocks: [10.0.0.1], action: mtls, serverIdentities: [a/b], \
             tunnelReuse: {reuse}}}"
        );
        file("", STRICT, &format!("{PASS}, destinations: [{destination}]"))
    };
    for (word, reuse) in [("true", true), ("false", false)] {
        assert_eq!(good(&to(word)).policy.destinations()[0].tunnel_reuse(), reuse);
    }
    for other in ["yes", "no", "True", "'true'", "'false'", "1", "falsee"] {
        assert!(error(&to(other)).contains("true or false, without quotes"), "{other}");
    }
}

#[test]
fn a_short_word_misspelt_is_recognised_and_a_far_one_is_not() {
    let key = |key: &str| {
        error(&rules(&format!("{{name: r, action: deny, from: [{{{key}: true, any: true}}]}}")))
    };
    assert!(key("ani").contains("did you mean \"any\"?"), "{}", key("ani"));
    assert!(key("ipBlosk").contains("did you mean \"ipBlocks\"?"));
    assert!(!key("wholly").contains("did you mean"));
}

#[test]
fn identities_are_counted_over_the_whole_file() {
    let rule = |name: &str, count: usize, namespace: &str| {
        let ids: Vec<_> = (0..count).map(|n| format!("{namespace}/s{n}")).collect();
        format!("{{name: {name}, action: allow, from: [{{identities: [{}]}}]}}", ids.join(", "))
    };
    let two = |more: usize| {
        rules(&format!("{}, {}", rule("a", 50_000, "a"), rule("b", 50_000 + more, "b")))
    };
    assert_eq!(errors(&two(0)), []);
    assert_eq!(errors(&two(1)), [Kind::TooMany]);
}

#[test]
fn a_policy_has_its_name_and_knows_whether_it_needs_a_domain() {
    let with = |id: &str, server: &str| {
        let rule = format!("rules: [{{name: r, action: allow, from: [{{identities: ['{id}']}}]}}]");
        let to = format!(
            "destinations: [{{name: d, ipBlocks: [10.0.0.1], action: mtls, serverIdentities: ['{server}']}}]"
        );
        let text = file("", &format!("{STRICT}, {rule}"), &format!("{PASS}, {to}"));
        load("t.yaml", &text, None).unwrap().policy
    };
    let full = "spiffe://d.example/a";
    assert_eq!(with(full, full).name(), "t");
    assert!(!with(full, full).needs_own_trust_domain());
    assert!(with("ns/sa", full).needs_own_trust_domain());
    assert!(with(full, "ns/sa").needs_own_trust_domain());
}

#[test]
fn an_open_rule_is_named_by_the_block_that_opens_it() {
    let opens = |blocks: &str| {
        let rule = format!("{{name: a, action: allow, from: [{{ipBlocks: [{blocks}]}}]}}");
        let warnings = good(&rules(&rule)).warnings;
        let is =
            |d: &crate::Diagnostic| d.message.split(" and no identity").next().unwrap().to_owned();
        warnings.iter().map(is).collect()
    };
    let but = "{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}";
    let warnings =
        good(&rules(&format!("{{name: a, action: allow, from: [{{ipBlocks: [{but}]}}]}}")));
    let [but] = warnings.warnings.as_slice() else { panic!("one warning") };
    assert!(but.message.starts_with("0.0.0.0/0 is every address but its exceptions"), "{but}");
    let opens: [Vec<String>; 4] = [
        "10.0.0.0/8, 0.0.0.0/0",
        "0.0.0.0/0, ::/0",
        "0.0.0.0/1, 128.0.0.0/1",
        "{cidr: 0.0.0.0/1, except: [1.0.0.0/8]}, 128.0.0.0/1, 1.0.0.0/8",
    ]
    .map(opens);
    assert_eq!(opens[0], ["0.0.0.0/0 is every address"]);
    assert_eq!(opens[1], ["0.0.0.0/0 is every address", "::/0 is every address"]);
    assert_eq!(opens[2], ["this list is every address"]);
    assert_eq!(opens[3], ["this list is every address"], "its exception is in it");
}

#[test]
fn an_address_among_names_is_told_where_it_belongs() {
    for address in ["10.0.0.1", "10.0.0.0/8", "fd00::1"] {
        let destination = format!("{{name: d, action: deny, hosts: [\"{address}\"]}}");
        let outbound = format!("defaultAction: passthrough, destinations: [{destination}]");
        let said = error(&file("", STRICT, &outbound));
        assert!(said.ends_with("; an address belongs in ipBlocks"), "{said}");
    }
}
