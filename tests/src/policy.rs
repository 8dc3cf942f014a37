//! The policies that most tests start from.

use std::net::IpAddr;

use crate::labels::{CLIENT, SERVER};

/// Strict inbound: `identities` may call every port; outbound passes through.
#[must_use]
pub fn serve(identities: &[&str]) -> String {
    serve_from(identities, &[])
}

/// Strict inbound for `identities`, from `ip_blocks` alone when there are any.
#[must_use]
pub fn serve_from(identities: &[&str], ip_blocks: &[&str]) -> String {
    let blocks = if ip_blocks.is_empty() {
        String::new()
    } else {
        format!("ipBlocks: {}, ", list(ip_blocks))
    };
    inbound(
        "strict",
        &format!(
            "  - {{name: callers, action: allow, from: [{{{blocks}identities: {}}}]}}\n",
            list(identities)
        ),
    )
}

/// Inbound in a mode, where `identities` and, on ports that take plaintext, everyone may call.
#[must_use]
pub fn serve_in_mode(mode: &str) -> String {
    inbound(mode, "  - {name: everyone, action: allow, from: [{any: true}]}\n")
}

/// A policy of which only the part after the head is given, to say what no other function here
/// says.
#[must_use]
pub fn with_body(body: &str) -> String {
    format!("{HEAD}{body}")
}

fn inbound(mode: &str, rules: &str) -> String {
    format!(
        "{HEAD}inbound:\n  mtls: {mode}\n  defaultAction: deny\n  rules:\n{rules}\
         outbound: {{defaultAction: passthrough, destinations: []}}\n"
    )
}

/// Outbound mTLS to `servers` on every port, where only `identity` may answer; inbound nothing.
#[must_use]
pub fn call(servers: &[IpAddr], identity: &str) -> String {
    let blocks = addresses(servers);
    outbound(&format!(
        "  - {{name: mesh, ipBlocks: {blocks}, action: mtls, serverIdentities: [\"{identity}\"]}}\n"
    ))
}

/// The same with a TLS connection of its own for each connection of the app.
#[must_use]
pub fn call_without_reuse(servers: &[IpAddr], identity: &str) -> String {
    call(servers, identity).replace("action: mtls,", "action: mtls, tunnelReuse: false,")
}

/// Outbound to `servers` denied; inbound nothing.
#[must_use]
pub fn call_denied(servers: &[IpAddr]) -> String {
    let blocks = addresses(servers);
    outbound(&format!("  - {{name: blocked, ipBlocks: {blocks}, action: deny}}\n"))
}

/// Outbound passes through; inbound nothing.
#[must_use]
pub fn pass() -> String {
    format!(
        "{HEAD}inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound: {{defaultAction: passthrough, destinations: []}}\n"
    )
}

fn outbound(destinations: &str) -> String {
    format!(
        "{HEAD}inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound:\n  defaultAction: passthrough\n  destinations:\n{destinations}"
    )
}

const HEAD: &str = "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {name: testbed}\n";

fn addresses(servers: &[IpAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    list(&servers)
}

/// A YAML flow list of quoted strings: an IPv6 address bare would be a mapping.
fn list(items: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}

/// A client of a server's two ports: connections to one go over tunnels that are used again, those
/// to the other have a TLS connection each. Revisions say the same, and differ.
#[must_use]
pub fn call_either_way(server: IpAddr, reused: u16, fresh: u16, revision: u32) -> String {
    let destination = |name: &str, port: u16, more: &str| {
        format!(
            "  - {{name: {name}, ipBlocks: [\"{server}\"], ports: [{port}], action: mtls, \
             serverIdentities: [\"{SERVER}\"]{more}}}\n"
        )
    };
    with_body(&format!(
        "inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound:\n  defaultAction: deny\n  destinations:\n{}{}# revision {revision}\n",
        destination("reused", reused, ""),
        destination("fresh", fresh, ", tunnelReuse: false"),
    ))
}

/// [`serve`] for the client; revisions say the same, and differ.
#[must_use]
pub fn serve_revision(revision: u32) -> String {
    format!("{}# revision {revision}\n", serve(&[CLIENT]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_quoted() {
        let servers = ["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()];
        assert!(call(&servers, "spiffe://d/s").contains("ipBlocks: [\"10.77.0.2\", \"fd77::2\"]"));
    }

    #[test]
    fn reuse_is_turned_off_where_it_is_said() {
        let servers = ["10.77.0.2".parse().unwrap()];
        assert!(call_without_reuse(&servers, "spiffe://d/s").contains("tunnelReuse: false"));
        assert!(!call(&servers, "spiffe://d/s").contains("tunnelReuse"));
    }

    #[test]
    fn an_address_range_is_named_only_when_there_is_one() {
        assert!(!serve(&["spiffe://d/s"]).contains("ipBlocks"));
        let text = serve_from(&["spiffe://d/s"], &["10.0.0.0/8"]);
        assert!(
            text.contains("from: [{ipBlocks: [\"10.0.0.0/8\"], identities: [\"spiffe://d/s\"]}]")
        );
    }
}
