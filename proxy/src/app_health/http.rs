//! An HTTP probe, with the kubelet's rules: any status from 200 to 399 is success, and redirects
//! are followed while they stay on the same host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use crate::config::HttpGet;

use super::{App, Failing, USER_AGENT};

/// The kubelet reads so much of a body, and a body that breaks off before that fails its probe.
const MAX_BODY: usize = 10 * 1024;

/// The head of an answer may be so long.
const MAX_HEAD: usize = 64 * 1024;

/// The kubelet counts an answer's headers no more than this does: none is shorter than `a:` and the
/// end of its line.
const MAX_HEADERS: usize = MAX_HEAD / 4;

/// A redirect after so many requests is not followed.
const MAX_REQUESTS: usize = 10;

/// One request of a probe.
#[derive(Debug, PartialEq, Eq)]
struct Hop {
    https: bool,
    port: u16,
    path: PathAndQuery,
    host: HeaderValue,
}

/// What came back.
enum Answered {
    Well,
    /// With the Location, as it is.
    Redirect(HeaderValue),
}

/// Asks until there is no further redirect to follow. The caller keeps the deadline.
pub(super) async fn get(app: &App<'_>, get: &HttpGet) -> Result<(), Failing> {
    let mut hop = Hop {
        https: get.https,
        port: get.port,
        path: get.path.clone(),
        host: get.host.clone().map_or_else(|| host_header(app.at.ip(), get.port), Ok)?,
    };
    for _ in 0..MAX_REQUESTS {
        match hop.ask(app, &get.headers).await? {
            Answered::Well => return Ok(()),
            Answered::Redirect(location) => match hop.follow(app.at.ip(), &location)? {
                Some(next) => hop = next,
                None => return Ok(()),
            },
        }
    }
    Err(Failing::Redirects(MAX_REQUESTS))
}

/// The pod's address and the port, also where that is the scheme's own: as the kubelet has it.
fn host_header(at: IpAddr, port: u16) -> Result<HeaderValue, Failing> {
    HeaderValue::try_from(SocketAddr::new(at, port).to_string()).map_err(|_| Failing::Location)
}

impl Hop {
    async fn ask(
        &self,
        app: &App<'_>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Answered, Failing> {
        let leg = app.dial(self.port).await?;
        let request = self.request(headers);
        if !self.https {
            return exchange(leg, request).await;
        }
        // An address as a name is not sent (RFC 6066, 3); nor does the kubelet send one.
        let name = ServerName::from(app.at.ip());
        let connector = TlsConnector::from(Arc::clone(app.tls));
        let stream = connector.connect(name, leg).await.map_err(Failing::Tls)?;
        exchange(stream, request).await
    }

    fn request(&self, headers: &[(HeaderName, HeaderValue)]) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone().into();
        let map = request.headers_mut();
        for (name, value) in headers {
            map.append(name, value.clone());
        }
        let defaults = [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, ANY)];
        for (name, value) in defaults {
            // Set to nothing, the kubelet leaves it out.
            if map.get(&name).is_some_and(HeaderValue::is_empty) {
                map.remove(name);
            } else if !map.contains_key(&name) {
                map.insert(name, value);
            }
        }
        map.insert(header::HOST, self.host.clone());
        map.insert(header::CONNECTION, CLOSE);
        request
    }

    /// Where a redirect leads; `None`: to another host, which is a success.
    fn follow(&self, at: IpAddr, location: &HeaderValue) -> Result<Option<Self>, Failing> {
        let scheme = if self.https { "https" } else { "http" };
        let here = format!("{scheme}://{}{}", SocketAddr::new(at, self.port), self.path);
        let here = Url::parse(&here).map_err(|_| Failing::Location)?;
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| Failing::Location)?;
        let there = here.join(location).map_err(|_| Failing::Location)?;
        if there.host() != here.host() {
            return Ok(None);
        }
        let https = match there.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(Failing::Location),
        };
        let port = there.port_or_known_default().ok_or(Failing::Location)?;
        let path = &there[Position::BeforePath..Position::AfterQuery];
        let path = PathAndQuery::try_from(path).map_err(|_| Failing::Location)?;
        // A Host of the probe's own holds as long as the redirects name none.
        let relative = Url::parse(location).is_err();
        let host = if relative { self.host.clone() } else { host_header(at, port)? };
        Ok(Some(Self { https, port, path, host }))
    }
}

const ANY: HeaderValue = HeaderValue::from_static("*/*");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// One request on a connection of its own.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answered, Failing>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        // RFC 9112, 5.2: the kubelet takes a folded line, too.
        .allow_obsolete_multiline_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failing::Http)?;
    let exchange = async move {
        let answer = sender.send_request(request).await.map_err(Failing::Http)?;
        judge(answer).await
    };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), Box::pin(connection));
    tokio::select! {
        done = &mut exchange => done,
        _ = &mut connection => {
            // What has arrived by then can still be read, and nothing more is waited for.
            drop(connection);
            exchange.await
        }
    }
}

async fn judge(answer: Response<Incoming>) -> Result<Answered, Failing> {
    let status = answer.status();
    if !(200..400).contains(&status.as_u16()) {
        return Err(Failing::Status(status));
    }
    let location = answer.headers().get(header::LOCATION).filter(|_| is_redirect(status)).cloned();
    if let Some(location) = location {
        return Ok(Answered::Redirect(location));
    }
    let (mut body, mut read) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        read += frame.map_err(Failing::Http)?.data_ref().map_or(0, Bytes::len);
        if read >= MAX_BODY {
            break;
        }
    }
    Ok(Answered::Well)
}

/// The statuses with which a GET goes elsewhere (RFC 9110, 15.4).
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "10.0.0.5";

    fn hop(https: bool, port: u16, path: &str, host: &str) -> Hop {
        let (path, host) = (path.parse().unwrap(), HeaderValue::from_str(host).unwrap());
        Hop { https, port, path, host }
    }

    fn follow(location: &str) -> Result<Option<Hop>, String> {
        let from = hop(false, 8080, "/a/ready?x=1", "shop.example");
        let location = HeaderValue::from_bytes(location.as_bytes()).unwrap();
        from.follow(AT.parse().unwrap(), &location).map_err(|e| e.to_string())
    }

    #[test]
    fn a_redirect_on_the_same_host_is_followed_and_another_host_is_a_success() {
        let own = "shop.example";
        for (location, to) in [
            ("/b?c=d#e", hop(false, 8080, "/b?c=d", own)),
            ("b", hop(false, 8080, "/a/b", own)),
            ("", hop(false, 8080, "/a/ready?x=1", own)),
            ("http://10.0.0.5/b", hop(false, 80, "/b", "10.0.0.5:80")),
            ("https://10.0.0.5:8443/", hop(true, 8443, "/", "10.0.0.5:8443")),
            ("https://10.0.0.5", hop(true, 443, "/", "10.0.0.5:443")),
        ] {
            assert_eq!(follow(location), Ok(Some(to)), "{location}");
        }
        for location in ["http://10.0.0.6:8080/", "https://shop.example/", "//other/", "ftp://a/"] {
            assert_eq!(follow(location), Ok(None), "{location}");
        }
        for location in ["ftp://10.0.0.5/", "http://", "http://10.0.0.5:99999/"] {
            assert!(follow(location).is_err_and(|e| e.contains("Location")), "{location}");
        }
        let from = hop(true, 8443, "/", "x");
        let location = HeaderValue::from_static("//[fd00::5]/b");
        let to = from.follow("fd00::5".parse().unwrap(), &location).unwrap();
        assert_eq!(to, Some(hop(true, 443, "/b", "x")), "the scheme stays");
    }

    #[test]
    fn a_request_has_the_probes_headers_and_those_of_the_kubelet() {
        let hop = hop(false, 80, "/", "10.0.0.5:80");
        let plain = hop.request(&[]);
        let value = |request: &Request<Empty<Bytes>>, name: &str| {
            request.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert!(value(&plain, "user-agent").unwrap().starts_with("kube-probe/"));
        assert_eq!(value(&plain, "accept").as_deref(), Some("*/*"));
        assert_eq!(value(&plain, "connection").as_deref(), Some("close"));
        assert_eq!(value(&plain, "host").as_deref(), Some("10.0.0.5:80"));
        let set = |name, value| (name, HeaderValue::from_static(value));
        let own = [
            set(header::USER_AGENT, "me"),
            set(header::ACCEPT, ""),
            set(HeaderName::from_static("x-a"), "1"),
            set(HeaderName::from_static("x-a"), "2"),
        ];
        let own = hop.request(&own);
        assert_eq!(value(&own, "user-agent").as_deref(), Some("me"));
        assert_eq!(value(&own, "accept"), None);
        assert_eq!(own.headers().get_all("x-a").iter().count(), 2);
    }
}
