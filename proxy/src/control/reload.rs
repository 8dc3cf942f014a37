//! Certificates and policy: loaded, checked, and published when they are good.
//! Whatever goes wrong after that, the last good ones stay.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pillion_certs::generation::TlsGeneration;
use pillion_certs::reload::{Outcome, Reloader};
use pillion_certs::spiffe::TrustDomain;
use pillion_certs::watch::{ContentHash, DirWatch, content_hash};
use rustls::pki_types::UnixTime;
use tokio::sync::Notify;

use crate::live::Shared;
use crate::policy;

use super::Workers;

/// Files are compared by content this often, in case a watch was missed.
const POLL_EVERY: Duration = Duration::from_secs(10);
/// A burst of events (a folder of files written one by one) is one reload.
const SETTLE: Duration = Duration::from_millis(50);
/// At the start, a policy that can't be used is logged again this often.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Keeps what is published in step with the files.
pub struct Reload {
    shared: Arc<Shared>,
    workers: Workers,
    certificates: Reloader,
    policy_seen: Option<PolicySeen>,
    changed: Arc<Notify>,
    watch: Option<DirWatch>,
}

/// The policy text that was last looked at, and for which trust domain.
struct PolicySeen {
    hash: ContentHash,
    domain: Option<TrustDomain>,
    said: Instant,
}

impl Reload {
    /// Starts to watch; [`Reload::run`] does the first load.
    pub fn new(shared: Arc<Shared>, workers: Workers) -> Self {
        let certificates = Reloader::new(shared.config.identity.clone());
        let changed = Arc::new(Notify::new());
        Self { shared, workers, certificates, policy_seen: None, changed, watch: None }
    }

    /// Watches the folders, once they are all there; until then the poll has to do.
    fn watch(&mut self) {
        if self.watch.is_some() {
            return;
        }
        let config = &self.shared.config;
        let mut paths = config.identity.paths();
        paths.push(config.policy_file.clone());
        let notify = Arc::clone(&self.changed);
        match DirWatch::new(&paths, move || notify.notify_one()) {
            Ok(watch) => self.watch = Some(watch),
            Err(e) => {
                tracing::warn!(error = %e, "files are compared every 10 s until they can be watched")
            }
        }
    }

    /// Loads, then follows the files for ever.
    pub async fn run(mut self) {
        loop {
            self.watch();
            self.load_certificates();
            self.load_policy();
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
    }

    fn load_certificates(&mut self) {
        let shared = &self.shared;
        match self.certificates.poll(UnixTime::now()) {
            Outcome::Unchanged => {}
            Outcome::Failed(e) => {
                shared.metrics.certificate_reload(e.label());
                let kept = shared.published.tls.load().is_some();
                tracing::error!(error = %e, last_good_stays = kept, "certificates can't be used");
            }
            Outcome::Loaded(generation) => {
                shared.metrics.certificate_reload("ok");
                publish_expiry(shared, &generation);
                tracing::info!(
                    id = %generation.own_id(), serial = generation.serial(),
                    not_after = unix(generation.not_after()), "certificates loaded"
                );
                shared.published.tls.store(Some(generation));
            }
        }
    }

    fn load_policy(&mut self) {
        let shared = Arc::clone(&self.shared);
        let path = &shared.config.policy_file;
        let domain = self.own_domain();
        let hash = content_hash(std::slice::from_ref(path));
        let published = shared.published.policy.load().is_some();
        if let Some(seen) = &self.policy_seen
            && seen.hash == hash
            && seen.domain == domain
            && (published || seen.said.elapsed() < REMIND_EVERY)
        {
            return;
        }
        self.policy_seen = Some(PolicySeen { hash, domain: domain.clone(), said: Instant::now() });
        let name = path.display().to_string();
        let loaded = read_policy(path).and_then(|text| {
            policy::load(&name, &text, domain.as_ref()).map_err(|e| e.to_string())
        });
        match loaded {
            Err(e) => {
                shared.metrics.policy_ok.set(0);
                tracing::error!(last_good_stays = published, "the policy can't be used: {e}");
            }
            Ok(_) if domain.is_none() => {
                tracing::warn!(
                    "the policy is good, and waits for our own trust domain: no certificate is loaded yet"
                );
            }
            Ok(compiled) => {
                for warning in &compiled.warnings {
                    tracing::warn!("{warning}");
                }
                let policy = Arc::new(compiled.policy);
                shared.metrics.policy_in_force(policy.hash());
                tracing::info!(name = policy.name(), hash = policy.hash(), "policy in force");
                shared.published.policy.store(Some(policy));
                self.workers.rejudge();
            }
        }
    }

    /// The environment's word, or that of our own certificate.
    fn own_domain(&self) -> Option<TrustDomain> {
        let configured = self.shared.config.identity.trust_domain.clone();
        configured.or_else(|| {
            self.shared.published.tls.load().as_ref().map(|tls| tls.trust_domain().clone())
        })
    }
}

/// The text of the policy file.
fn read_policy(path: &std::path::Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
    if size > policy::MAX_FILE_BYTES as u64 {
        return Err(format!(
            "{}: {size} bytes; the most is {}",
            path.display(),
            policy::MAX_FILE_BYTES
        ));
    }
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    String::from_utf8(bytes).map_err(|e| format!("{}: not UTF-8: {e}", path.display()))
}

fn publish_expiry(shared: &Shared, generation: &TlsGeneration) {
    shared.metrics.certificate_expires("svid", unix(generation.not_after()));
    let own = generation.trust_domain();
    if let Some((_, ca)) = generation.ca_not_after().find(|(domain, _)| *domain == own) {
        shared.metrics.certificate_expires("ca", unix(ca));
    }
}

fn unix(t: SystemTime) -> i64 {
    let seconds = t.duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
