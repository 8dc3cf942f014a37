//! The object as it is written, and what is checked of it beyond its form.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};

use crate::{
    AppProbe, DEFAULT_TIMEOUT, Handler, HttpGet, KINDS, MAX_TIMEOUT_SECONDS, NOT_SENT, PREFIX,
    Problem, Step, is_container_name, request_target,
};

/// The object as it is written, in its order; a key that is there twice is an error.
pub(crate) struct Written(pub(crate) Vec<(String, WrittenProbe)>);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an object from paths, such as /app-health/web/readinessProbe, to probes",
                )
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Written, M::Error> {
                let (mut seen, mut entries) = (BTreeSet::new(), Vec::new());
                while let Some(path) = map.next_key::<String>()? {
                    if !seen.insert(path.clone()) {
                        let twice = format!("`{path}` is there twice: leave one");
                        return Err(de::Error::custom(twice));
                    }
                    entries.push((path, map.next_value()?));
                }
                Ok(Written(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WrittenProbe {
    http_get: Option<WrittenGet>,
    tcp_socket: Option<WrittenSocket>,
    grpc: Option<WrittenGrpc>,
    timeout_seconds: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenGet {
    port: Port,
    path: Option<String>,
    scheme: Option<Scheme>,
    host: Option<String>,
    http_headers: Option<Vec<WrittenHeader>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSocket {
    port: Port,
    host: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGrpc {
    port: Port,
    service: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    Http,
    Https,
}

impl WrittenProbe {
    /// The probe that is meant. A problem's place is one of this object.
    pub(crate) fn checked(self, path: &str) -> Result<AppProbe, Problem> {
        check_path(path)?;
        let handler = match (self.http_get, self.tcp_socket, self.grpc) {
            (Some(get), None, None) => {
                Handler::HttpGet(get.checked().map_err(|e| e.below("httpGet"))?)
            }
            (None, Some(socket), None) => {
                no_host(socket.host).map_err(|e| e.below("tcpSocket"))?;
                Handler::TcpSocket { port: socket.port.0 }
            }
            (None, None, Some(grpc)) => Handler::Grpc {
                port: grpc.port.0,
                service: grpc.service.unwrap_or_default().into(),
            },
            _ => return Err(Problem::new([], "wants exactly one of httpGet, tcpSocket and grpc")),
        };
        let timeout = self.timeout_seconds.map(|Seconds(seconds)| Duration::from_secs(seconds));
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        Ok(AppProbe { path: path.into(), handler, timeout })
    }
}

/// `/app-health/<container>/<kind>`.
fn check_path(path: &str) -> Result<(), Problem> {
    let words = path.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
    if words.is_some_and(|(name, kind)| is_container_name(name) && KINDS.contains(&kind)) {
        return Ok(());
    }
    let what = format!(
        "no path of a probe: write {PREFIX}<container>/<kind>, where kind is one of {}",
        KINDS.join(", ")
    );
    Err(Problem::new([], what))
}

/// The kubelet asks the machine that `host` names, and not the pod.
fn no_host(host: Option<String>) -> Result<(), Problem> {
    let Some(host) = host.filter(|host| !host.is_empty()) else { return Ok(()) };
    let what = format!(
        "`{host}` would be asked by the kubelet itself, so leave that probe as it is; \
         for a Host header name it in httpHeaders"
    );
    Err(Problem::new([Step::key("host")], what))
}

impl WrittenGet {
    fn checked(self) -> Result<HttpGet, Problem> {
        no_host(self.host)?;
        let written = self.path.unwrap_or_default();
        let wrong = |why: &str| Problem::new([Step::key("path")], format!("`{written}`: {why}"));
        let target = request_target(&written).map_err(wrong)?;
        // All that it can have against it is that it is too long.
        let path = PathAndQuery::try_from(target.as_str())
            .map_err(|e| Problem::new([Step::key("path")], format!("{e}; shorten it")))?;
        let (mut host, mut headers) = (None, Vec::new());
        for (at, written) in self.http_headers.unwrap_or_default().into_iter().enumerate() {
            let wrong = |key, what: String| {
                Problem::new([Step::key("httpHeaders"), Step::Item(at), Step::key(key)], what)
            };
            let name = HeaderName::from_bytes(written.name.as_bytes()).map_err(|_| {
                let why = "is no name of a header; write letters, digits and -";
                wrong("name", format!("`{}` {why}", written.name))
            })?;
            // It may be a password, so it is not repeated.
            let mut value = HeaderValue::from_bytes(written.value.as_bytes()).map_err(|_| {
                wrong("value", "control characters in it; write it on one line".to_owned())
            })?;
            value.set_sensitive(true);
            if name == header::HOST {
                // The first one counts, as for the kubelet.
                host = host.or(Some(value));
            } else if !NOT_SENT.contains(&name) {
                headers.push((name, value));
            }
        }
        let https = self.scheme == Some(Scheme::Https);
        Ok(HttpGet { port: self.port.0, path, https, host, headers })
    }
}

/// A port's number.
#[derive(Clone, Copy)]
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "the number of a port (a port's name means nothing here)";
        deserializer.deserialize_u64(Number { most: u16::MAX.into(), what }).and_then(|number| {
            // Its bounds are those of a port.
            u16::try_from(number).map(Self).map_err(de::Error::custom)
        })
    }
}

struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_u64(Number { most: MAX_TIMEOUT_SECONDS, what: "whole seconds" })
            .map(Self)
    }
}

/// A whole number from 1 up.
struct Number {
    most: u64,
    what: &'static str,
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from 1 to {}", self.what, self.most)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        if (1..=self.most).contains(&number) {
            return Ok(number);
        }
        Err(E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}
