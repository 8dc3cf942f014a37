//! Single values as users write them. What is wrong comes back as `cause; cure`.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};

use crate::flags::{ENV_PREFIX, FLAGS, Flag};
use crate::ports::PortRange;

pub(crate) fn port_range(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parsed = first.trim().parse().ok().zip(last.trim().parse().ok());
    parsed.and_then(|(first, last)| PortRange::new(first, last)).ok_or_else(|| {
        format!("`{text}` is no port or range; write a number from 1 to 65535, or first-last")
    })
}

pub(crate) fn net(text: &str) -> Result<IpNet, String> {
    let host = || text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address));
    let Some(net) = text.parse::<IpNet>().ok().or_else(host) else {
        return Err(format!(
            "`{text}` is no address range; write one like 10.0.0.0/8 or 2001:db8::/32"
        ));
    };
    if let Some(mapped) = mapped(&net) {
        Err(format!(
            "`{text}` is an IPv4 range in IPv6 spelling, and IPv6's rules never see IPv4; \
             write {mapped}"
        ))
    } else if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!("`{text}` has bits beyond its prefix; write {}", net.trunc()))
    }
}

/// The IPv4 range that an IPv4-mapped one means (RFC 4291, section 2.5.5.2).
fn mapped(net: &IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(net) = net else { return None };
    let prefix = net.prefix_len().checked_sub(96)?;
    Ipv4Net::new(net.addr().to_ipv4_mapped()?, prefix).ok().map(|net| net.trunc())
}

/// The kernel's own limits (`dev_valid_name`, `IFNAMSIZ`), and nothing that `iptables-restore`
/// would take for a word of its language.
pub(crate) fn interface(text: &str) -> Result<String, String> {
    let stem = text.strip_suffix('+').unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:@-".contains(c);
    if !stem.is_empty() && text.len() < 16 && !stem.starts_with('-') && stem.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is no interface; write up to 15 letters, digits or _.:@- with an optional +"
        ))
    }
}

/// Kubernetes injects `<SERVICE>_PORT=tcp://...` for each Service of the pod's namespace.
pub(crate) fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

pub(crate) fn unknown_variables(environment: &BTreeMap<String, String>) -> Vec<String> {
    let known: Vec<String> = FLAGS.iter().map(Flag::variable).collect();
    let injected = |name: &str| ["_SERVICE_", "_TCP", "_UDP"].iter().any(|s| name.contains(s));
    environment
        .iter()
        .filter(|(name, value)| {
            name.starts_with(ENV_PREFIX)
                && !known.contains(name)
                && !is_service_link(value)
                && !injected(name)
        })
        .map(|(name, _)| {
            let near = known.iter().max_by(|a, b| {
                strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name))
            });
            let near = near.map(String::as_str).unwrap_or_default();
            format!("{name} means nothing here; did you mean {near}?")
        })
        .collect()
}
