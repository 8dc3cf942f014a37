//! Certificates and policy: loaded, checked, and published when they are good.
//! Whatever goes wrong after that, the last good ones stay.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pillion_certs::generation::TlsGeneration;
use pillion_certs::reload::Outcome;
use pillion_certs::spiffe::TrustDomain;
use pillion_certs::stillness::{Look, STILL_FOR, Stillness};
use pillion_certs::watch::{ContentHash, DirWatch, content_hash};
use pillion_policy::Compiled;
use rustls::pki_types::UnixTime;
use tokio::sync::Notify;

use crate::live::Shared;

use super::Workers;
use super::expiry::Expiry;
use super::identity::Identity;
use super::readiness::Readiness;

/// Files are compared by content this often, in case a watch was missed.
const POLL_EVERY: Duration = Duration::from_secs(10);
/// Readings of a file that changes meanwhile, before it is given up until the next event.
const READINGS: usize = 5;
/// At the start, a policy that can't be used is logged again this often.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Keeps what is published in step with the files.
pub struct Reload {
    shared: Arc<Shared>,
    workers: Workers,
    readiness: Arc<Readiness>,
    certificates: Identity,
    expiry: Expiry,
    policy_seen: Option<PolicySeen>,
    policy_stillness: Stillness<ContentHash>,
    changed: Arc<Notify>,
    watch: Option<DirWatch>,
    watch_error: Option<String>,
}

/// The policy file that was last looked at, and for which trust domain.
struct PolicySeen {
    hash: ContentHash,
    /// Why its text could not be had: that may pass while the file stays as it is.
    unread: Option<String>,
    domain: Option<TrustDomain>,
    said: Instant,
}

impl Reload {
    /// Starts to watch; [`Reload::run`] does the first load.
    pub fn new(shared: Arc<Shared>, workers: Workers, readiness: Arc<Readiness>) -> Self {
        let changed = Arc::new(Notify::new());
        let certificates = Identity::new(&shared.config, &changed);
        Self {
            shared,
            workers,
            readiness,
            certificates,
            expiry: Expiry::default(),
            policy_seen: None,
            policy_stillness: Stillness::default(),
            changed,
            watch: None,
            watch_error: None,
        }
    }

    /// Watches the folders, once they are all there; until then the poll has to do.
    fn watch(&mut self) {
        if self.watch.is_some() {
            return;
        }
        let config = &self.shared.config;
        let mut paths = self.certificates.paths();
        paths.push(config.policy_file.clone());
        let notify = Arc::clone(&self.changed);
        match DirWatch::new(&paths, move || notify.notify_one()) {
            Ok(watch) => self.watch = Some(watch),
            Err(e) => {
                let why = Some(e.to_string());
                if self.watch_error != why {
                    tracing::warn!(error = %e, "files are compared every 10 s until they can be watched");
                    self.watch_error = why;
                }
            }
        }
    }

    /// Loads, then follows the files for ever.
    pub async fn run(mut self) {
        loop {
            self.watch();
            let mut unsettled = self.load_certificates();
            if let Some(generation) = self.shared.published.tls.load().as_ref() {
                self.expiry.look(&self.shared.metrics, generation, UnixTime::now());
            }
            unsettled |= self.load_policy(Instant::now());
            self.readiness.look();
            if unsettled {
                tokio::time::sleep(STILL_FOR).await;
                continue;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
    }

    /// Takes what is new. Says whether something is that may not be whole yet.
    fn load_certificates(&mut self) -> bool {
        let metrics = &self.shared.metrics;
        match self.certificates.poll(UnixTime::now()) {
            Outcome::Unchanged => {}
            Outcome::Unsettled => return true,
            Outcome::Failed(faults) => {
                let kept = self.shared.published.tls.load().is_some();
                for e in faults {
                    metrics.certificate_reload(e.label());
                    tracing::error!(error = %e, last_good_stays = kept, "certificates can't be used");
                }
            }
            Outcome::Loaded(generation) => self.publish(generation),
            Outcome::Partly(generation, faults) => {
                for e in faults {
                    metrics.certificate_reload(e.label());
                    tracing::error!(
                        error = %e,
                        "this part of the certificates can't be used: it stays as it was, or is missing where there was none"
                    );
                }
                self.publish(generation);
            }
        }
        false
    }

    fn publish(&self, generation: Arc<TlsGeneration>) {
        self.shared.metrics.certificate_reload("ok");
        if let Some(entry) = generation.own_revocation() {
            tracing::error!(
                serial = entry.serial,
                reason = entry.reason.unwrap_or("not given"),
                "our own certificate is revoked: peers refuse it; issue a new one"
            );
        }
        tracing::info!(
            id = %generation.own_id(), serial = generation.serial(),
            revocation_lists = generation.revocation_lists().len(),
            not_after = unix(generation.not_after()), "certificates loaded"
        );
        self.shared.published.tls.store(Some(generation));
        self.workers.renew();
    }

    /// The same of the policy. Half of a file may be a good one, without the rules that deny.
    fn load_policy(&mut self, now: Instant) -> bool {
        let shared = Arc::clone(&self.shared);
        let path = &shared.config.policy_file;
        let domain = self.own_domain();
        let (hash, text) = read_policy(path);
        let published = shared.published.policy.load().is_some();
        if let Some(seen) = &self.policy_seen
            && seen.hash == hash
            && seen.unread.as_ref() == text.as_ref().err()
            && seen.domain == domain
            && (published || now.duration_since(seen.said) < REMIND_EVERY)
        {
            self.policy_stillness.rest();
            return false;
        }
        // At the start there is none that half of one could replace.
        let look = if published { self.policy_stillness.look(hash, now) } else { Look::Still };
        let text = match look {
            Look::Still => text,
            Look::Again => return true,
            Look::Restless => {
                let restless = keeps_changing(path);
                let seen = self.policy_seen.as_ref();
                if seen.is_some_and(|seen| seen.unread.as_ref() == Some(&restless)) {
                    return true;
                }
                Err(restless)
            }
        };
        let unread = text.as_ref().err().cloned();
        self.policy_seen = Some(PolicySeen { hash, unread, domain: domain.clone(), said: now });
        let name = path.display().to_string();
        let loaded = text.and_then(|text| compile(&name, &text, domain.as_ref()));
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
                if compiled.warnings_left_out > 0 {
                    tracing::warn!("{} more warnings of the policy", compiled.warnings_left_out);
                }
                let policy = Arc::new(compiled.policy);
                shared.metrics.policy_in_force(policy.hash());
                tracing::info!(name = policy.name(), hash = policy.hash(), "policy in force");
                shared.published.policy.store(Some(policy));
                shared.new_policy.notify_one();
                self.workers.rejudge();
            }
        }
        false
    }

    /// The environment's word, or that of our own certificate.
    fn own_domain(&self) -> Option<TrustDomain> {
        let configured = self.shared.config.identity.trust_domain.clone();
        configured.or_else(|| {
            self.shared.published.tls.load().as_ref().map(|tls| tls.trust_domain().clone())
        })
    }
}

/// The policy file's hash, and its text or why there is none. A text that changes
/// while it is read is read again: half of a file may be a good file, without the
/// rules that deny.
fn read_policy(path: &Path) -> (ContentHash, Result<String, String>) {
    let files = [path.to_path_buf()];
    let mut hash = content_hash(&files);
    let mut text = read_text(path);
    for _ in 0..READINGS {
        let again = content_hash(&files);
        if again == hash {
            return (hash, text);
        }
        (hash, text) = (again, read_text(path));
    }
    (hash, Err(keeps_changing(path)))
}

fn keeps_changing(path: &Path) -> String {
    format!("{}: it keeps changing; write it whole, and rename it into place", path.display())
}

fn read_text(path: &Path) -> Result<String, String> {
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let opened = |e: std::io::Error| match e.kind() {
        ErrorKind::PermissionDenied => at(&format!(
            "{e}; check its mode and owner, and that its folder was not replaced by another: the \
             sandbox knows the one of the start"
        )),
        _ => at(&e),
    };
    let metadata = std::fs::metadata(path).map_err(|e| at(&e))?;
    if !metadata.is_file() {
        return Err(at(&"not a regular file"));
    }
    if metadata.len() > pillion_policy::MAX_FILE_BYTES as u64 {
        return Err(format!(
            "{}:1:1: error: the file has {} bytes; the most is {}",
            path.display(),
            metadata.len(),
            pillion_policy::MAX_FILE_BYTES
        ));
    }
    let bytes = std::fs::read(path).map_err(opened)?;
    pillion_policy::text(&path.display().to_string(), bytes).map_err(|e| e.to_string())
}

/// A file that the compiler can't bear must not take a running pod down.
fn compile(name: &str, text: &str, own: Option<&TrustDomain>) -> Result<Compiled, String> {
    std::panic::catch_unwind(|| pillion_policy::load(name, text, own).map_err(|e| e.to_string()))
        .unwrap_or_else(|_| Err(format!("{name}: reading it panicked; please report the file")))
}

fn unix(t: SystemTime) -> i64 {
    let seconds = t.duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
