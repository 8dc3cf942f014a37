//! What an option's value has to be. What is wrong comes back as `cause; cure`.

use std::net::IpAddr;

use ipnet::IpNet;

/// The form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// One of these.
    Words(&'static [&'static str]),
    /// A container image.
    Image,
    /// A resource's name, a DNS subdomain (RFC 1123).
    Name,
    /// A file's name without a path.
    File,
    /// A signer, `domain/path`.
    Signer,
    /// A `ClusterTrustBundle`'s name, which may have its signer's before a colon.
    Bundle,
    /// Ports and ranges.
    Ports,
    /// The same, or `all`.
    PortsOrAll,
    /// Address ranges.
    Cidrs,
    /// The same, or `all`.
    CidrsOrAll,
    /// An amount, such as 10m or 32Mi.
    Quantity,
    /// One line of anything.
    Text,
}

impl Syntax {
    /// What stands for the value in `--help`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Words(_) => "WORD",
            Self::Image => "IMAGE",
            Self::Name | Self::Bundle | Self::Signer => "NAME",
            Self::File => "FILE",
            Self::Ports | Self::PortsOrAll => "PORTS",
            Self::Cidrs | Self::CidrsOrAll => "CIDRS",
            Self::Quantity => "AMOUNT",
            Self::Text => "TEXT",
        }
    }

    /// The values that there are, where they are few.
    pub(crate) fn words(self) -> &'static [&'static str] {
        if let Self::Words(words) = self { words } else { &[] }
    }

    /// Checks a value without white space at its ends, and not empty.
    pub(crate) fn check(self, value: &str) -> Result<(), String> {
        let good = match self {
            Self::Words(words) => {
                let known = words.contains(&value);
                return or(known, value, "is unknown", &format!("write {}", words.join(" or ")));
            }
            Self::PortsOrAll | Self::CidrsOrAll if value == "all" => true,
            Self::Ports | Self::PortsOrAll => return each(value, port),
            Self::Cidrs | Self::CidrsOrAll => return each(value, cidr),
            Self::Image => value.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\''),
            Self::Name => is_name(value),
            Self::File => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                value.chars().all(plain) && value != "." && value != ".."
            }
            Self::Signer => is_signer(value),
            Self::Bundle => {
                let (signer, name) = value.rsplit_once(':').unwrap_or(("", value));
                is_name(name) && (signer.is_empty() || is_name(&signer.replace(':', ".")))
            }
            Self::Quantity => is_quantity(value),
            Self::Text => !value.chars().any(char::is_control),
        };
        let cure = match self {
            Self::Image => "write one like registry.example/pillion-proxy:0.1.0",
            Self::Name => "write lower-case letters, digits, - and . (RFC 1123)",
            Self::File => "write a file's name without its path",
            Self::Signer => "write a domain, a slash and a path, like example.com/spiffe",
            Self::Bundle => "write the ClusterTrustBundle's metadata.name",
            Self::Quantity => "write one like 10m or 32Mi",
            _ => "write one line without control characters",
        };
        or(good, value, "cannot be used", cure)
    }
}

fn or(good: bool, value: &str, cause: &str, cure: &str) -> Result<(), String> {
    let shown = crate::diagnostic::printable(value);
    if good { Ok(()) } else { Err(format!("`{shown}` {cause}; {cure}")) }
}

/// Each item of a list that is separated by commas; at least one.
fn each(value: &str, check: fn(&str) -> Result<(), String>) -> Result<(), String> {
    let mut items = value.split(',').map(str::trim).filter(|item| !item.is_empty()).peekable();
    if items.peek().is_none() {
        return Err("the list is empty; name something, or leave the option out".to_owned());
    }
    items.try_for_each(check)
}

fn port(text: &str) -> Result<(), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = first.trim().parse::<u16>().ok().zip(last.trim().parse::<u16>().ok());
    let good = ports.is_some_and(|(first, last)| first > 0 && first <= last);
    or(good, text, "is no port or range", "write a number from 1 to 65535, or first-last")
}

fn cidr(text: &str) -> Result<(), String> {
    let host = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    let Some(net) = text.parse::<IpNet>().ok().or_else(host) else {
        let cure = "write one like 10.0.0.0/8 or 2001:db8::/32";
        return or(false, text, "is no address range", cure);
    };
    let mapped = matches!(net, IpNet::V6(v6) if v6.prefix_len() >= 96
        && v6.addr().to_ipv4_mapped().is_some());
    if mapped {
        let cause = "is an IPv4 range in IPv6 spelling, and IPv6's rules never see IPv4";
        return or(false, text, cause, "write it as IPv4");
    }
    let cure = format!("write {}", net.trunc());
    or(net.trunc() == net, text, "has bits beyond its prefix", &cure)
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_signer(text: &str) -> bool {
    let path = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    text.split_once('/').is_some_and(|(domain, name)| {
        is_name(domain) && domain.contains('.') && !name.is_empty() && name.chars().all(path)
    })
}

/// The usual part of Kubernetes' quantities: digits, perhaps a fraction, and a suffix.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 10] = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(number.len()..).unwrap_or_default();
    let digits = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    SUFFIXES.contains(&suffix) && digits(whole) && digits(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_what_is_not() {
        for (syntax, good, bad) in [
            (Syntax::Words(&["a", "b"]), &["a", "b"][..], &["c", "A"][..]),
            (Syntax::Image, &["a", "r.example:5000/x/y@sha256:00"], &["a b", "'a'", "ü"]),
            (Syntax::Name, &["a", "a-1.b"], &["A", "-a", "a.", "a_b"]),
            (Syntax::File, &["agent.sock"], &["a/b", "..", "a b"]),
            (
                Syntax::Signer,
                &["example.com/spiffe"],
                &["example.com", "com/x", "e.com/", "e.x/y z"],
            ),
            (Syntax::Bundle, &["example.com:spiffe:v1", "roots"], &["A", "a/b", ":a:"]),
            (Syntax::Ports, &["80", "80, 90-99,"], &["0", "9-8", "all", ",", "65536", "x"]),
            (Syntax::PortsOrAll, &["all", "1"], &["all,1"]),
            (Syntax::Cidrs, &["10.0.0.1, fd00::/8"], &["10.0.0.1/8", "x", "::ffff:10.0.0.0/104"]),
            (Syntax::CidrsOrAll, &["all"], &["none"]),
            (Syntax::Quantity, &["1", "0.5", "10m", "32Mi"], &["", "m", "1x", "-1", "1.", "1e3"]),
            (Syntax::Text, &["info,pillion=debug"], &["a\nb"]),
        ] {
            for value in good {
                assert_eq!(syntax.check(value), Ok(()), "{syntax:?} {value}");
            }
            for value in bad {
                let problem = syntax.check(value).unwrap_err();
                assert!(problem.contains("; "), "{syntax:?} {value}: {problem}");
            }
        }
    }

    /// What goes to pillion-init as it is must be what that takes, no more and no less.
    #[test]
    fn pillion_init_agrees() {
        use pillion_init::config::Config;
        for (flag, syntax) in [
            ("--inbound-ports", Syntax::PortsOrAll),
            ("--inbound-exclude-ports", Syntax::Ports),
            ("--outbound-cidrs", Syntax::CidrsOrAll),
            ("--inbound-exclude-cidrs", Syntax::Cidrs),
        ] {
            for value in [
                "all",
                "1",
                "80,90-99",
                "0",
                "9-8",
                "1 - 2",
                "+1",
                "10.0.0.0/8",
                "10.0.0.0/9 ,::1",
                "10.0.0.1/8",
                "::ffff:10.0.0.0/104",
                "::ffff:0:0/95",
                "::ffff:1.2.3.4",
                "::/0",
                "fd00::/8",
                "0.0.0.0/0",
                "300.0.0.0/8",
                "10.0.0.0/33",
                "all,1",
                "65536",
            ] {
                let theirs = Config::from_arguments(&[&format!("{flag}={value}")], &[]).is_ok();
                assert_eq!(syntax.check(value).is_ok(), theirs, "{flag}={value}");
            }
        }
    }
}
