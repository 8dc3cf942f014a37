//! What IPv6 is in this namespace, and what it could become while the pod runs.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::Ipv6Addr;
use std::path::Path;

use crate::host::HostError;
use crate::rules::INBOUND_SOURCE_V6;

/// What IPv6 is in this namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipv6State {
    /// It is on for `lo`, without which captured connections cannot reach the proxy.
    pub enabled: bool,
    /// An address that peers may reach, with its interface: neither link-local nor the two
    /// that a captured pod has on `lo`, `::1` and `::6`.
    pub reachable: Option<String>,
    /// An interface beside `lo` on which IPv6 is on: it may get an address at any time, by a
    /// router's advertisement or by a network plugin. `default` stands for those that are yet to
    /// come.
    pub possible: Option<String>,
}

impl Ipv6State {
    /// Reads it from the kernel.
    ///
    /// # Errors
    /// The kernel has IPv6, and /proc does not say all of this. Not knowing is not the same as
    /// none, since what is not known would go uncaptured.
    pub fn read() -> Result<Self, HostError> {
        Self::read_in(Path::new("/proc"))
    }

    fn read_in(proc: &Path) -> Result<Self, HostError> {
        let (table, switches) = (proc.join("net/if_inet6"), proc.join("sys/net/ipv6/conf"));
        let on = interfaces_with_ipv6(&switches);
        match (fs::read_to_string(&table), on) {
            // A kernel without IPv6 has neither.
            (Err(no), Err((_, none))) if is_absent(&no) && is_absent(&none) => Ok(Self::default()),
            (Err(source), _) => Err(unreadable(&table, source)),
            (_, Err((path, source))) => Err(HostError::Unreadable { path, source }),
            (Ok(addresses), Ok(on)) => Ok(Self {
                enabled: on.iter().any(|interface| interface == "lo"),
                reachable: reachable(&addresses),
                possible: on.into_iter().find(|interface| interface != "lo"),
            }),
        }
    }

    /// Why a connection could come past IPv4's rules, now or later; `None` when none can.
    #[must_use]
    pub fn exposure(&self) -> Option<String> {
        let now = self.reachable.as_ref().map(|address| format!("{address} is reachable"));
        now.or_else(|| {
            self.possible.as_ref().map(|interface| match interface.as_str() {
                "default" => "IPv6 is on for interfaces that are yet to come \
                              (net.ipv6.conf.default.disable_ipv6=0)"
                    .to_owned(),
                _ => format!("IPv6 is on for {interface}, which may get an address at any time"),
            })
        })
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

fn unreadable(path: &Path, source: io::Error) -> HostError {
    HostError::Unreadable { path: path.display().to_string(), source }
}

/// The interfaces whose `disable_ipv6` is 0, real ones before `default`; an error names its file.
///
/// `all` is left out: writing to it sets every other one, and the kernel never asks for it again
/// (Documentation/networking/ip-sysctl.rst).
fn interfaces_with_ipv6(switches: &Path) -> Result<Vec<String>, (String, io::Error)> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |source| (path, source)
    };
    let mut on = Vec::new();
    for entry in fs::read_dir(switches).map_err(at(switches))? {
        let entry = entry.map_err(at(switches))?;
        let interface = entry.file_name().to_string_lossy().into_owned();
        let switch = entry.path().join("disable_ipv6");
        match fs::read_to_string(&switch) {
            Ok(value) if interface != "all" && value.trim() == "0" => on.push(interface),
            Ok(_) => {}
            // The interface went away meanwhile.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(at(&switch)(error)),
        }
    }
    on.sort_by_key(|interface| interface == "default");
    Ok(on)
}

/// The first address in `/proc/net/if_inet6` that peers may reach. Its columns are address,
/// interface index, prefix length, scope, flags and interface (proc_pid_net(5)). An address that
/// cannot be understood counts, as the kernel wrote it.
fn reachable(table: &str) -> Option<String> {
    const LINK_LOCAL: &str = "20";
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, scope, _, interface] = columns[..] else {
            return Some(line.to_owned());
        };
        let Ok(bits) = u128::from_str_radix(address, 16) else {
            return Some(line.to_owned());
        };
        let address = Ipv6Addr::from_bits(bits);
        let own = interface == "lo" && [Ipv6Addr::LOCALHOST, INBOUND_SOURCE_V6].contains(&address);
        (scope != LINK_LOCAL && !own).then(|| format!("{address} on {interface}"))
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const LO: &str = "00000000000000000000000000000001 01 80 10 80       lo\n\
                      00000000000000000000000000000006 01 80 00 80       lo\n\
                      fe80000000000000fc5400fffe000001 02 40 20 80     eth0\n";

    /// A /proc with these values of `disable_ipv6`.
    fn proc(addresses: &str, switches: &[(&str, &str)]) -> TempDir {
        let proc = TempDir::new().unwrap();
        fs::create_dir_all(proc.path().join("net")).unwrap();
        fs::write(proc.path().join("net/if_inet6"), addresses).unwrap();
        for (interface, value) in switches {
            let directory = proc.path().join("sys/net/ipv6/conf").join(interface);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("disable_ipv6"), format!("{value}\n")).unwrap();
        }
        proc
    }

    #[test]
    fn link_local_and_the_two_on_lo_are_not_reachable() {
        assert_eq!(reachable(LO), None);
        for (address, interface) in [("fd00::2", "eth0"), ("fd00::2", "lo"), ("::6", "eth0")] {
            let bits = address.parse::<Ipv6Addr>().unwrap().to_bits();
            let table = format!("{LO}{bits:032x} 02 40 00 80     {interface}\n");
            assert_eq!(reachable(&table), Some(format!("{address} on {interface}")));
        }
        assert!(reachable("what is this\n").is_some());
    }

    #[test]
    fn each_interface_but_lo_makes_it_possible() {
        for (switches, possible) in [
            ([("all", "1"), ("default", "1"), ("eth0", "1"), ("lo", "0")], None),
            ([("all", "0"), ("default", "1"), ("eth0", "1"), ("lo", "1")], None),
            ([("all", "1"), ("default", "1"), ("eth0", "0"), ("lo", "1")], Some("eth0")),
            ([("all", "1"), ("default", "0"), ("eth0", "1"), ("lo", "1")], Some("default")),
            ([("all", "0"), ("default", "0"), ("eth0", "0"), ("lo", "1")], Some("eth0")),
        ] {
            let proc = proc(LO, &switches);
            let state = Ipv6State::read_in(proc.path()).unwrap();
            assert_eq!(state.possible.as_deref(), possible, "{switches:?}");
            assert_eq!(state.enabled, switches[3].1 == "0");
            assert_eq!(state.exposure().is_some(), possible.is_some());
        }
    }

    #[test]
    fn only_a_kernel_without_ipv6_has_none() {
        let empty = TempDir::new().unwrap();
        assert_eq!(Ipv6State::read_in(empty.path()).unwrap(), Ipv6State::default());

        // Something that is there and cannot be read as a file or folder, one for each.
        let switches = [("default", "1"), ("lo", "1")];
        for broken in ["net/if_inet6", "sys/net/ipv6/conf", "sys/net/ipv6/conf/lo/disable_ipv6"] {
            for gone in [false, true] {
                let proc = proc(LO, &switches);
                let path = proc.path().join(broken);
                if path.is_dir() {
                    fs::remove_dir_all(&path).unwrap();
                    if !gone {
                        fs::write(&path, "").unwrap();
                    }
                } else {
                    fs::remove_file(&path).unwrap();
                    if !gone {
                        fs::create_dir(&path).unwrap();
                    }
                }
                let read = Ipv6State::read_in(proc.path());
                if gone && broken.ends_with("disable_ipv6") {
                    assert!(read.is_ok(), "an interface that went away");
                } else {
                    let error = read.unwrap_err().to_string();
                    assert!(error.contains(broken), "{error}");
                }
            }
        }
    }
}
