//! Says in the log and in the metrics when a certificate, an authority or a revocation list ends.

use pillion_certs::expiry::{Lifetime, Notice, Notices, Subject};
use pillion_certs::generation::TlsGeneration;
use rustls::pki_types::UnixTime;

use crate::telemetry::Metrics;

/// What has been said so far.
#[derive(Debug, Default)]
pub(super) struct Expiry(Notices);

impl Expiry {
    /// Says what is due. Called at each poll of the files, it says the same thing once a day, and
    /// once an hour when it is urgent.
    pub(super) fn look(&mut self, generation: &TlsGeneration, now: UnixTime) {
        for (notice, what) in self.0.due(&generation.lifetimes(), now) {
            match notice {
                Notice::Ending => tracing::warn!("{what}"),
                Notice::Early | Notice::Over => tracing::error!("{what}"),
            }
        }
    }
}

/// Publishes the ends as metrics. Other domains share one series, so that the number of series
/// does not grow with them: the first of their bundles to end.
pub(super) fn publish(metrics: &Metrics, generation: &TlsGeneration) {
    let lifetimes = generation.lifetimes();
    let first = |is: &dyn Fn(&Subject) -> bool| {
        lifetimes.iter().filter(|l| is(&l.subject)).map(|l: &Lifetime| l.until).min()
    };
    let own = generation.trust_domain();
    for (kind, until) in [
        ("svid", first(&|s| matches!(s, Subject::OwnSvid))),
        ("ca", first(&|s| matches!(s, Subject::Authority(domain) if domain == own))),
        ("federated_ca", first(&|s| matches!(s, Subject::Authority(domain) if domain != own))),
        ("crl", first(&|s| matches!(s, Subject::RevocationList(_)))),
    ] {
        metrics.certificate_expires(kind, until);
    }
}
