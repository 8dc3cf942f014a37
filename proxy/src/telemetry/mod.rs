//! Why connections close, the metrics, the access log and the process's log.

mod access_log;
mod logging;
mod metrics;
mod reason;

use std::fmt;

pub use access_log::{AccessLog, Record};
pub use logging::{LogHandle, LogLimiter, init as init_logging};
pub use metrics::{ByteCounters, METRICS, MetricInfo, Metrics};
pub use reason::CloseReason;

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a peer to our app.
    Inbound,
    /// From our app to a server.
    Outbound,
}

impl Direction {
    /// The metric label and log field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
