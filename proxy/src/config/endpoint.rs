//! Where the SPIFFE Workload API is served.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A Workload Endpoint's address, as `SPIFFE_ENDPOINT_SOCKET` has it (SPIFFE Workload Endpoint §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSocket {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://address:port`
    Tcp(SocketAddr),
}

impl EndpointSocket {
    /// As the gRPC library names it.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}", path.display()),
            Self::Tcp(address) => format!("http://{address}"),
        }
    }
}

impl fmt::Display for EndpointSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl FromStr for EndpointSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is neither unix:///path nor tcp://address:port, with an IP address and \
                 nothing after it"
            )
        };
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
        match path {
            Some(path) if path.starts_with('/') && !path.contains(['?', '#']) => {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err(bad()),
            None => {
                let address = text.strip_prefix("tcp://").and_then(|a| a.parse().ok());
                address.map(Self::Tcp).ok_or_else(bad)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_forms_of_the_specification_are_read_and_no_other() {
        let read = |text: &str| text.parse::<EndpointSocket>();
        for (text, uri) in [
            ("unix:///run/spire/agent.sock", "unix:///run/spire/agent.sock"),
            ("unix:/run/spire/agent.sock", "unix:///run/spire/agent.sock"),
            ("tcp://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("tcp://[::1]:8000", "http://[::1]:8000"),
        ] {
            assert_eq!(read(text).map(|socket| socket.uri()), Ok(uri.to_owned()), "{text}");
        }
        assert_eq!(read("unix:/a").unwrap().to_string(), "unix:///a");
        for bad in [
            "",
            "/run/agent.sock",
            "unix://run/agent.sock",
            "unix:///a?b",
            "unix:///a#b",
            "tcp://localhost:8000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:8000/a",
            "http://127.0.0.1:8000",
        ] {
            assert!(read(bad).unwrap_err().contains("neither"), "{bad}");
        }
    }
}
