//! Why a probe of the app fails.

use std::io;
use std::time::Duration;

use hyper::StatusCode;

use crate::dial::DialError;
use crate::telemetry::CloseReason;

/// The result of a run that has found the app well.
pub const SUCCESS: &str = "success";
const UNHEALTHY: &str = "unhealthy";
const CONNECT_FAILED: &str = "connect_failed";
const TIMEOUT: &str = "timeout";
const TLS_FAILED: &str = "tls_failed";
const BAD_ANSWER: &str = "bad_answer";

/// Every result of a run, with its meaning: the label `result` of `pillion_app_probes_total`.
pub const RESULTS: &[(&str, &str)] = &[
    (SUCCESS, "The app is well."),
    (UNHEALTHY, "The app says that it is not: a status from 400 up, or another than SERVING."),
    (CONNECT_FAILED, "No connection to the app was made; nothing listens there, for example."),
    (TIMEOUT, "Not done within timeoutSeconds."),
    (TLS_FAILED, "The TLS handshake with an HTTPS app failed."),
    (
        BAD_ANSWER,
        "The answer is no HTTP or gRPC, breaks off, or redirects in a way that is not followed.",
    ),
];

/// Why a probe of the app fails; the message is what the kubelet is told. It holds nothing of
/// what the app has said but numbers: anyone may ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failing {
    #[error("the app answers with status {}", .0.as_u16())]
    Status(StatusCode),
    #[error("the app's gRPC health service answers with status {0}, where SERVING is wanted")]
    NotServing(i32),
    #[error("the app's gRPC health service answers with the error {0}")]
    Grpc(tonic::Code),
    #[error("{0}")]
    Connect(DialError),
    #[error("not done within {0:?}")]
    Timeout(Duration),
    #[error("TLS with the app: {0}")]
    Tls(io::Error),
    #[error("the app's answer is no HTTP/1: {0}")]
    Http(hyper::Error),
    #[error("the app's answer is no gRPC: {0}")]
    NoGrpc(String),
    #[error("the app redirects more than {0} times")]
    Redirects(usize),
    #[error("the app redirects to what is no address: its Location is no URL with http or https")]
    Location,
    #[error("the app redirects to port {0}, which is the proxy's own")]
    OwnPort(u16),
}

impl Failing {
    /// The result's name in the metric and the log.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Status(_) | Self::NotServing(_) | Self::Grpc(_) => UNHEALTHY,
            Self::Connect(e) if e.reason() == CloseReason::ConnectTimeout => TIMEOUT,
            Self::Connect(_) => CONNECT_FAILED,
            Self::Timeout(_) => TIMEOUT,
            Self::Tls(_) => TLS_FAILED,
            Self::Http(_) | Self::NoGrpc(_) => BAD_ANSWER,
            Self::Redirects(_) | Self::Location | Self::OwnPort(_) => BAD_ANSWER,
        }
    }

    /// The status that the kubelet gets: the app's own, where that is the failure.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Status(status) if status.as_u16() >= 400 => *status,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apps_own_failure_is_passed_on_and_no_success_is_made_of_any() {
        for (status, told) in [(400, 400), (404, 404), (500, 500), (999, 999), (101, 503)] {
            let failing = Failing::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!((failing.status().as_u16(), failing.label()), (told, "unhealthy"));
            assert!(failing.to_string().ends_with(&status.to_string()), "{failing}");
        }
        for failing in [
            Failing::NotServing(2),
            Failing::Grpc(tonic::Code::Unimplemented),
            Failing::Timeout(Duration::from_secs(1)),
            Failing::Tls(io::Error::other("x")),
            Failing::Redirects(10),
            Failing::Location,
            Failing::OwnPort(15021),
        ] {
            assert_eq!(failing.status(), StatusCode::SERVICE_UNAVAILABLE, "{failing}");
            assert!(RESULTS.iter().any(|(label, _)| *label == failing.label()), "{failing}");
        }
    }
}
