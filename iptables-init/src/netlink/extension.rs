//! Matches and targets of x_tables in the words of `iptables-save`. Those that this program writes
//! have their values, and others their name. Pure.

use super::encode::{MULTIPORT, OPENING, OWNER, REDIRECT, REJECT, TCP, with_reset};
use super::kernel::{
    ANY_PORT, NF_NAT_RANGE_PROTO_SPECIFIED, NFTA_XT_INFO, NFTA_XT_NAME, NFTA_XT_REV,
    XT_MULTI_PORTS, XT_MULTIPORT_DESTINATION, XT_OWNER_GID, XT_OWNER_UID,
};
use super::wire::{Attributes, Malformed, array};
use crate::rules::Family;

/// A match of x_tables; only those that this program writes have their values.
pub(super) fn module(data: &Attributes<'_>) -> Result<String, Malformed> {
    let name = data.text(NFTA_XT_NAME).ok_or(Malformed)?;
    let revision = data.u32(NFTA_XT_REV)?.unwrap_or(0);
    let info = data.find(NFTA_XT_INFO).unwrap_or_default();
    let values = match (name.as_str(), revision) {
        MULTIPORT => multiport(info)?,
        OWNER => owner(info)?,
        TCP => opening(info)?,
        _ => None,
    };
    let name = quoted(&name);
    Ok(match values {
        Some(values) => format!("-m {name} {values}"),
        None => format!("-m {name} [{name}]"),
    })
}

fn multiport(info: &[u8]) -> Result<Option<String>, Malformed> {
    let [flags, count] = array(info, 0)?;
    let begins: [u8; XT_MULTI_PORTS] = array(info, 2 + 2 * XT_MULTI_PORTS)?;
    let [inverted] = array(info, 2 + 3 * XT_MULTI_PORTS)?;
    let mut text = String::new();
    for (slot, begins) in begins.iter().enumerate().take(count.into()) {
        let port = u16::from_ne_bytes(array(info, 2 + 2 * slot)?);
        let separator = match (usize::from(count) == slot + 1, *begins) {
            (true, _) => "",
            (false, 0) => ",",
            (false, _) => ":",
        };
        text.push_str(&format!("{port}{separator}"));
    }
    let understood = flags == XT_MULTIPORT_DESTINATION && usize::from(count) <= XT_MULTI_PORTS;
    let not = if inverted == 0 { "" } else { "! " };
    Ok(understood.then(|| format!("{not}--dports {text}")))
}

fn owner(info: &[u8]) -> Result<Option<String>, Malformed> {
    let id = |index: usize| array(info, 4 * index).map(u32::from_ne_bytes);
    let [which, inverted] = array(info, 16)?;
    let words = [(XT_OWNER_UID, "--uid-owner", 0), (XT_OWNER_GID, "--gid-owner", 2)];
    let mut texts = Vec::new();
    for (bit, flag, at) in words.into_iter().filter(|(bit, ..)| which & bit != 0) {
        let (first, last) = (id(at)?, id(at + 1)?);
        let not = if inverted & bit == 0 { "" } else { "! " };
        let range = if first == last { String::new() } else { format!("-{last}") };
        texts.push(format!("{not}{flag} {first}{range}"));
    }
    Ok((which & !(XT_OWNER_UID | XT_OWNER_GID) == 0).then(|| texts.join(" ")))
}

/// Any ports, and the flags of the packet that opens a connection.
fn opening(info: &[u8]) -> Result<Option<String>, Malformed> {
    let ports: [u8; 8] = array(info, 0)?;
    let [option, mask, set, inverted] = array(info, 8)?;
    let understood = ports == *ANY_PORT.map(u16::to_ne_bytes).as_flattened()
        && (option, inverted, (mask, set)) == (0, 0, OPENING);
    Ok(understood.then(|| "--tcp-flags FIN,SYN,RST,ACK SYN".to_owned()))
}

/// A target of x_tables.
pub(super) fn target(data: &Attributes<'_>, family: Family) -> Result<String, Malformed> {
    let name = data.text(NFTA_XT_NAME).ok_or(Malformed)?;
    let revision = data.u32(NFTA_XT_REV)?.unwrap_or(0);
    let info = data.find(NFTA_XT_INFO).unwrap_or_default();
    let values = match (name.as_str(), revision) {
        REDIRECT => redirect(info, family)?,
        REJECT => reject(info, family)?,
        _ => None,
    };
    let name = quoted(&name);
    Ok(match values {
        Some(values) => format!("-j {name}{values}"),
        None => format!("-j {name} [{name}]"),
    })
}

fn redirect(info: &[u8], family: Family) -> Result<Option<String>, Malformed> {
    let (flags, ports) = match family {
        Family::V4 => (4, 16),
        Family::V6 => (0, 36),
    };
    let flags = u32::from_ne_bytes(array(info, flags)?);
    let first = u16::from_be_bytes(array(info, ports)?);
    let last = u16::from_be_bytes(array(info, ports + 2)?);
    let range = if first == last { String::new() } else { format!("-{last}") };
    Ok(match flags {
        0 => Some(String::new()),
        NF_NAT_RANGE_PROTO_SPECIFIED => Some(format!(" --to-ports {first}{range}")),
        _ => None,
    })
}

fn reject(info: &[u8], family: Family) -> Result<Option<String>, Malformed> {
    let with = u32::from_ne_bytes(array(info, 0)?);
    Ok((with == with_reset(family)).then(|| " --reject-with tcp-reset".to_owned()))
}

/// A word as `*-save` prints it: whatever others have put into a name, it stays one word.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from('"');
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            // Nothing of others breaks a line of our log.
            c if c.is_control() => text.push('?'),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_others_stays_one_word() {
        assert_eq!(quoted("eth0"), "eth0");
        assert_eq!(quoted("a\" -j LOG"), "\"a\\\" -j LOG\"");
        assert_eq!(quoted("a\nb"), "\"a?b\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
