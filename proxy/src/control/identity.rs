//! Where our certificates come from, and whether there are new ones.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use pillion_certs::generation::TlsGeneration;
use pillion_certs::load::{IdentityFiles, LoadError};
use pillion_certs::received::Received;
use pillion_certs::reload::{Outcome, Reloader};
use pillion_certs::watch::ContentHash;
use rustls::pki_types::UnixTime;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc};

use crate::config::Config;

/// The source of our identity.
pub(super) enum Identity {
    /// Files, compared by their content.
    Files(Files),
    /// The SPIFFE Workload API.
    Agent(Agent),
}

impl Identity {
    /// As the configuration says. What isn't a file calls `changed` when there is news.
    pub(super) fn new(config: &Config, changed: &Arc<Notify>) -> Self {
        match Agent::new(config, changed) {
            Some(agent) => Self::Agent(agent),
            None => Self::Files(Files::new(config.identity.clone())),
        }
    }

    /// What is to be watched.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Files(files) => files.reloader.files().paths(),
            Self::Agent(_) => Vec::new(),
        }
    }

    /// What is new since the last call. A parser that panics is a failure as any other: the last
    /// good generation stays, and what comes next is read.
    pub(super) fn poll(&mut self, now: UnixTime) -> Outcome {
        match self {
            Self::Files(files) => files.poll_by(|reloader| reloader.poll(now)),
            Self::Agent(agent) => agent.poll(),
        }
    }
}

/// Certificates come from others too: one that a parser can't bear must not take a running pod
/// down. What `work` changes must be whole wherever it ends.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, LoadError> {
    let panicked = "reading the certificates panicked; please report it";
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| LoadError::Tls(panicked.to_owned()))
}

/// The files of our identity.
pub(super) struct Files {
    reloader: Reloader,
    /// The last poll panicked: that is told once.
    panicked: bool,
}

impl Files {
    fn new(files: IdentityFiles) -> Self {
        Self { reloader: Reloader::new(files), panicked: false }
    }

    /// What `poll` finds. The reloader notes a content before it is parsed, so the same one is not
    /// parsed again after a panic; it notes a generation once that is whole.
    fn poll_by(&mut self, poll: impl FnOnce(&mut Reloader) -> Outcome) -> Outcome {
        let polled = caught(|| poll(&mut self.reloader));
        let again = std::mem::replace(&mut self.panicked, polled.is_err());
        match polled {
            Ok(outcome) => outcome,
            Err(_) if again => Outcome::Unchanged,
            Err(error) => Outcome::Failed(vec![error]),
        }
    }
}

/// An answer's hash, what it makes, and the parts of it that can't be used.
type Good = (ContentHash, Arc<TlsGeneration>, Vec<LoadError>);

/// The answers of the agent that serves the Workload API.
pub(super) struct Agent {
    answers: mpsc::Receiver<Result<Received, String>>,
    /// What was wrong last: it is told once.
    said: Option<LoadError>,
    /// What was good last, but for its faults: the same again is news only after something that
    /// was wrong.
    good: Option<Good>,
    identity: IdentityFiles,
}

impl Agent {
    #[cfg(feature = "workload-api")]
    fn new(config: &Config, changed: &Arc<Notify>) -> Option<Self> {
        let socket = config.workload_api.clone()?;
        // One answer at a time: the next waits in the stream.
        let (sender, answers) = mpsc::channel(1);
        tokio::spawn(super::workload_api::follow(socket, sender, Arc::clone(changed)));
        Some(Self { answers, said: None, good: None, identity: config.identity.clone() })
    }

    // Configured nevertheless, it has stopped the start.
    #[cfg(not(feature = "workload-api"))]
    fn new(_: &Config, _: &Arc<Notify>) -> Option<Self> {
        None
    }

    /// The next answer, where it is news: another generation, the last good one again after
    /// something that was wrong, or a fault that is not the one of the answer before.
    fn poll(&mut self) -> Outcome {
        let answer = match self.answers.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return Outcome::Unchanged,
            // It is asked for ever, but for a panic.
            Err(TryRecvError::Disconnected) => {
                Err("asking has panicked; restart the proxy, and report it".to_owned())
            }
        };
        let answer = answer.map_err(LoadError::WorkloadApi);
        match answer.and_then(|received| self.generation(&received)) {
            Ok(good) => {
                let recovered = self.said.take().is_some();
                let (hash, generation, faults) = good.clone();
                let before = self.good.replace(good);
                if !recovered && before.is_some_and(|(before, ..)| before == hash) {
                    Outcome::Unchanged
                } else {
                    Outcome::loaded(generation, faults)
                }
            }
            Err(error) if self.said.as_ref() == Some(&error) => Outcome::Unchanged,
            Err(error) => {
                self.said = Some(error.clone());
                Outcome::Failed(vec![error])
            }
        }
    }

    /// The generation that an answer makes, and what of it can't be used: the last good one, where
    /// it is the same answer.
    fn generation(&self, received: &Received) -> Result<Good, LoadError> {
        let hash = received.content_hash();
        if let Some(good) = self.good.as_ref().filter(|(good, ..)| *good == hash) {
            return Ok(good.clone());
        }
        let (domain, key_exchange) = (&self.identity.trust_domain, self.identity.key_exchange);
        let before = self.good.as_ref().map(|(_, generation, _)| generation.as_ref());
        let (generation, faults) =
            caught(|| received.generation(domain.as_ref(), key_exchange, before))??;
        Ok((hash, Arc::new(generation), faults))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pillion_certs::issue::{CertificateAuthority, issue, make_ca};
    use pillion_certs::load::{KeyExchange, SvidSource};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const ID: &str = "spiffe://own.example/app";

    /// Files that are not there.
    fn identity() -> IdentityFiles {
        let nowhere = PathBuf::from("/nonexistent");
        IdentityFiles {
            svid: SvidSource::Bundle { file: nowhere.join("credentials.pem") },
            ca: nowhere.join("ca.crt"),
            trust_bundles_dir: None,
            crl: None,
            trust_domain: None,
            key_exchange: KeyExchange::Auto,
        }
    }

    fn der(pem: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    fn authority() -> CertificateAuthority {
        make_ca(&"own.example".parse().unwrap(), HOUR).unwrap()
    }

    /// The parts of a good answer: certificate, key and authority.
    struct Parts(Vec<u8>, Vec<u8>, Vec<u8>);

    impl Parts {
        fn new(ca: &CertificateAuthority) -> Self {
            let svid = issue(ca, &ID.parse().unwrap(), HOUR / 2).unwrap();
            let key = PrivatePkcs8KeyDer::from_pem_slice(svid.key_pem.as_bytes()).unwrap();
            let key = key.secret_pkcs8_der().to_vec();
            Self(der(&svid.chain_pem), key, der(&ca.cert_pem))
        }

        fn answer(&self) -> Received {
            let Self(svid, key, bundle) = self;
            Received {
                id: ID.to_owned(),
                svid: svid.clone(),
                key: key.clone().into(),
                bundle: bundle.clone(),
                ..Received::default()
            }
        }

        /// The same, of which the certificate ends after so many bytes.
        fn torn(&self, length: usize) -> Received {
            let mut answer = self.answer();
            answer.svid.truncate(length);
            answer
        }
    }

    /// An agent's end of the stream, and ours.
    struct Stream(mpsc::Sender<Result<Received, String>>, Agent);

    impl Stream {
        fn new() -> Self {
            let (sender, answers) = mpsc::channel(1);
            Self(sender, Agent { answers, said: None, good: None, identity: identity() })
        }

        fn says(&mut self, answer: Result<Received, String>) -> Outcome {
            assert!(self.0.try_send(answer).is_ok(), "the answer before was not taken");
            self.1.poll()
        }

        fn good(&self) -> &Arc<TlsGeneration> {
            &self.1.good.as_ref().unwrap().1
        }
    }

    fn loaded(outcome: Outcome) -> Arc<TlsGeneration> {
        let Outcome::Loaded(generation) = outcome else { panic!("{outcome:?}") };
        generation
    }

    fn failed(outcome: Outcome) -> String {
        let Outcome::Failed(faults) = outcome else { panic!("{outcome:?}") };
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].to_string()
    }

    fn unchanged(outcome: &Outcome) {
        assert!(matches!(outcome, Outcome::Unchanged), "{outcome:?}");
    }

    #[test]
    fn the_same_answer_again_is_no_reload() {
        let ca = authority();
        let (first, second) = (Parts::new(&ca), Parts::new(&ca));
        let mut stream = Stream::new();
        let one = loaded(stream.says(Ok(first.answer())));
        unchanged(&stream.says(Ok(first.answer())));
        unchanged(&stream.1.poll());
        let two = loaded(stream.says(Ok(second.answer())));
        assert_ne!(one.serial(), two.serial());
        unchanged(&stream.says(Ok(second.answer())));
        // It is not that whatever was good once is known for ever.
        assert_eq!(loaded(stream.says(Ok(first.answer()))).serial(), one.serial());
    }

    #[test]
    fn each_fault_is_told_once_and_the_last_good_generation_stays() {
        let parts = Parts::new(&authority());
        let mut stream = Stream::new();
        let good = loaded(stream.says(Ok(parts.answer())));
        assert!(failed(stream.says(Ok(parts.torn(200)))).contains("certificate 1"));
        for _ in 0..3 {
            unchanged(&stream.says(Ok(parts.torn(200))));
            unchanged(&stream.1.poll());
        }
        // Another fault is news.
        assert!(failed(stream.says(Err("gone".to_owned()))).contains("gone"));
        unchanged(&stream.says(Err("gone".to_owned())));
        assert!(failed(stream.says(Ok(parts.torn(0)))).contains("no certificate"));
        assert!(Arc::ptr_eq(stream.good(), &good));
    }

    #[test]
    fn a_good_answer_after_a_fault_is_told_and_the_fault_after_it_again() {
        let parts = Parts::new(&authority());
        let mut stream = Stream::new();
        let good = loaded(stream.says(Ok(parts.answer())));
        for _ in 0..3 {
            failed(stream.says(Ok(parts.torn(200))));
            // The very same generation: no connection has a reason to change.
            assert!(Arc::ptr_eq(&loaded(stream.says(Ok(parts.answer()))), &good));
            unchanged(&stream.says(Ok(parts.answer())));
        }
    }

    #[test]
    fn a_part_that_cannot_be_used_is_told_again_when_the_rest_is_good_again() {
        let parts = Parts::new(&authority());
        let mut stream = Stream::new();
        let torn = || {
            let federated = vec![("spiffe://other.example".to_owned(), vec![0x30])];
            Received { federated, ..parts.answer() }
        };
        let told = |outcome: Outcome| {
            let Outcome::Partly(_, faults) = outcome else { panic!("{outcome:?}") };
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let first = told(stream.says(Ok(torn())));
        unchanged(&stream.says(Ok(torn())));
        failed(stream.says(Err("gone".to_owned())));
        assert_eq!(told(stream.says(Ok(torn()))), first);
        assert_eq!(first.len(), 1, "{first:?}");
    }

    #[test]
    fn the_first_good_answer_after_faults_is_loaded() {
        let mut stream = Stream::new();
        failed(stream.says(Err("no identity issued".to_owned())));
        unchanged(&stream.says(Err("no identity issued".to_owned())));
        let generation = loaded(stream.says(Ok(Parts::new(&authority()).answer())));
        assert_eq!(generation.own_id().as_str(), ID);
    }

    #[test]
    fn that_the_agent_is_asked_no_more_is_told_once() {
        let Stream(sender, mut agent) = Stream::new();
        drop(sender);
        assert!(failed(agent.poll()).contains("panicked"));
        unchanged(&agent.poll());
    }

    #[test]
    fn a_panic_is_a_failure_that_is_told_once() {
        let mut files = Files::new(identity());
        let told = failed(files.poll_by(|_| panic!("as a bug in a parser would")));
        assert!(told.contains("panicked; please report it"), "{told}");
        unchanged(&files.poll_by(|_| panic!("again")));
        // The next poll reads again; these files are not there.
        let poll = |files: &mut Files| files.poll_by(|reloader| reloader.poll(UnixTime::now()));
        assert!(failed(poll(&mut files)).contains("not found"));
        unchanged(&poll(&mut files));
        failed(files.poll_by(|_| panic!("as a bug in a parser would")));
    }

    #[test]
    fn what_does_not_panic_comes_through() {
        assert_eq!(caught(|| 7), Ok(7));
        let error = caught(|| -> u8 { panic!("as a bug in a parser would") }).unwrap_err();
        assert_eq!(error.label(), "tls");
    }
}
