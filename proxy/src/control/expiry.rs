//! Says in the log and in the metrics when a certificate, an authority or a revocation list ends.

use pillion_certs::expiry::{Lifetime, Notice, Notices, Subject};
use pillion_certs::generation::TlsGeneration;
use pillion_certs::spiffe::TrustDomain;
use rustls::pki_types::UnixTime;

use crate::telemetry::Metrics;

/// What has been said so far.
#[derive(Debug, Default)]
pub(super) struct Expiry(Notices);

impl Expiry {
    /// Says what is due, and publishes the ends. Called at each poll of the files, since an authority
    /// that was published ahead counts once it has begun. The log says the same thing once a day,
    /// and once an hour when it is urgent.
    pub(super) fn look(&mut self, metrics: &Metrics, generation: &TlsGeneration, now: UnixTime) {
        let lifetimes = generation.lifetimes(now);
        for (notice, what) in self.0.due(&lifetimes, now) {
            match notice {
                Notice::Ending => tracing::warn!("{what}"),
                Notice::Early | Notice::Over => tracing::error!("{what}"),
            }
        }
        publish(metrics, generation.trust_domain(), &lifetimes);
    }
}

/// Publishes the ends as metrics, and the lifetimes with them: an hour is much of a day and little of
/// ten years. Other domains share one series, so that the number of series
/// does not grow with them: the first of their bundles to end.
fn publish(metrics: &Metrics, own: &TrustDomain, lifetimes: &[Lifetime]) {
    let first = |is: &dyn Fn(&Subject) -> bool| {
        lifetimes.iter().filter(|l| is(&l.subject)).min_by_key(|l| l.until)
    };
    for (kind, first) in [
        ("svid", first(&|s| matches!(s, Subject::OwnSvid))),
        ("ca", first(&|s| matches!(s, Subject::Authority(domain) if domain == own))),
        ("federated_ca", first(&|s| matches!(s, Subject::Authority(domain) if domain != own))),
        ("crl", first(&|s| matches!(s, Subject::RevocationList(_)))),
    ] {
        metrics.certificate_expires(kind, first);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pillion_certs::generation::KeyExchange;
    use pillion_certs::issue::{Forge, issue, make_ca};
    use pillion_certs::revocation::RevocationLists;
    use pillion_certs::revoke::revocation_list;
    use pillion_certs::verify::TrustBundles;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_end_of_the_authorities_is_published_anew_once_the_next_has_begun() {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let domain: TrustDomain = "example.org".parse().unwrap();
        let used = make_ca(&domain, 4 * HOUR).unwrap();
        let next = Forge::new("spiffe://example.org").unwrap().ca().valid(3 * 3600, 9 * 3600);
        // Without any key usage, as tools make authorities by default.
        let next = next.key_usages(&[]).sign(&used).unwrap();
        let own = issue(&used, &"spiffe://example.org/a".parse().unwrap(), HOUR).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add(domain, &[der(&used.cert_pem), der(&next.chain_pem)]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
        let chain = vec![der(&own.chain_pem)];
        let generation = TlsGeneration::new(chain, &key, bundles, KeyExchange::Auto).unwrap();

        let metrics = Metrics::new().unwrap();
        let mut expiry = Expiry::default();
        let start = Duration::from_secs(UnixTime::now().as_secs());
        // After so many hours: the end, and the lifetime, in hours.
        let mut published = |hours: u32| {
            let now = UnixTime::since_unix_epoch(start + hours * HOUR);
            expiry.look(&metrics, &generation, now);
            let text = String::from_utf8(metrics.render(0).unwrap()).unwrap();
            let value = |name: &str| -> u64 {
                let series = format!("pillion_certificate_{name}_seconds{{kind=\"ca\"}} ");
                let value = text.lines().find_map(|line| line.strip_prefix(&series));
                value.unwrap().parse().unwrap()
            };
            // The certificates were made within the half hour before `start`.
            let end = value("expiration_timestamp") - start.as_secs() + 1800;
            (end / 3600, (value("lifetime") + 1800) / 3600)
        };
        assert_eq!(published(0), (4, 4));
        assert_eq!(published(2), (4, 4));
        assert_eq!(published(4), (9, 6));
    }

    /// Of a kind's series: the end, in seconds from now.
    fn published(metrics: &Metrics, kind: &str) -> Option<u64> {
        let text = String::from_utf8(metrics.render(0).unwrap()).unwrap();
        let series =
            format!("pillion_certificate_expiration_timestamp_seconds{{kind=\"{kind}\"}} ");
        let end = text.lines().find_map(|line| line.strip_prefix(&series))?;
        Some(end.parse::<u64>().unwrap() - UnixTime::now().as_secs())
    }

    #[test]
    fn of_others_authorities_and_of_lists_the_first_to_end_is_published() {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ours = make_ca(&domain, 9 * HOUR).unwrap();
        let own = issue(&ours, &"spiffe://example.org/a".parse().unwrap(), HOUR).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add(domain, &[der(&ours.cert_pem)]).unwrap();
        for (partner, hours) in [("one.example", 6), ("two.example", 4), ("three.example", 8)] {
            let partner: TrustDomain = partner.parse().unwrap();
            let theirs = make_ca(&partner, hours * HOUR).unwrap();
            bundles.add(partner, &[der(&theirs.cert_pem)]).unwrap();
        }
        let list = |hours: u32| revocation_list(&ours, None, &[], None, hours * HOUR).unwrap();
        let lists = RevocationLists::from_file((list(3) + &list(2)).as_bytes()).unwrap();
        let bundles = bundles.with_revocation_lists(lists);
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
        let chain = vec![der(&own.chain_pem)];
        let generation = TlsGeneration::new(chain, &key, bundles, KeyExchange::Auto).unwrap();
        let metrics = Metrics::new().unwrap();
        Expiry::default().look(&metrics, &generation, UnixTime::now());
        for (kind, hours) in [("svid", 1), ("ca", 9), ("federated_ca", 4), ("crl", 2)] {
            let end = published(&metrics, kind).expect(kind);
            assert!((hours * 3600 - 1800..=hours * 3600).contains(&end), "{kind}: {end}");
        }
    }
}
