//! A small SPIFFE agent: the part of the Workload API that hands out X.509-SVIDs, over a Unix
//! socket. Its messages are written out from the specification's proto file; the tests share no
//! code with what they test.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::Failure;

#[derive(Clone, PartialEq, prost::Message)]
struct X509SvidRequest {}

/// What the agent says: identities, authorities of others, revocation lists.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

fn certificates(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    for der in CertificateDer::pem_file_iter(file).map_err(unexpected)? {
        all.extend_from_slice(&der.map_err(unexpected)?);
    }
    Ok(all)
}

fn unexpected(error: impl std::fmt::Display) -> Failure {
    Failure::Unexpected(error.to_string())
}

impl Answer {
    /// The identity in a directory that has `tls.crt`, `tls.key` and `ca.crt`.
    ///
    /// # Errors
    /// The files are not as they should be.
    pub fn of(identity: &str, directory: &Path) -> Result<Self, Failure> {
        let key = PrivateKeyDer::from_pem_file(directory.join("tls.key")).map_err(unexpected)?;
        let svid = X509Svid {
            spiffe_id: identity.to_owned(),
            x509_svid: certificates(&directory.join("tls.crt"))?,
            x509_svid_key: key.secret_der().to_vec(),
            bundle: certificates(&directory.join("ca.crt"))?,
            hint: String::new(),
        };
        Ok(Self { svids: vec![svid], ..Self::default() })
    }

    /// The same with the identities of another after its own.
    #[must_use]
    pub fn then(mut self, other: Self) -> Self {
        self.svids.extend(other.svids);
        self
    }

    /// The same with the authorities of another trust domain.
    ///
    /// # Errors
    /// The file holds none.
    pub fn federated(mut self, domain: &str, bundle: &Path) -> Result<Self, Failure> {
        self.federated_bundles.insert(format!("spiffe://{domain}"), certificates(bundle)?);
        Ok(self)
    }

    /// The same with a revocation list.
    ///
    /// # Errors
    /// The file holds none.
    pub fn revoking(mut self, list: &Path) -> Result<Self, Failure> {
        let list = CertificateRevocationListDer::from_pem_file(list).map_err(unexpected)?;
        self.crl.push(list.to_vec());
        Ok(self)
    }

    /// The same with a certificate of which the end is missing.
    #[must_use]
    pub fn torn(mut self) -> Self {
        for svid in &mut self.svids {
            svid.x509_svid.truncate(svid.x509_svid.len() / 2);
        }
        self
    }
}

/// The agent. It ends, and its streams with it, when it is dropped.
#[derive(Debug)]
pub struct WorkloadApi {
    answer: Option<watch::Sender<Option<Answer>>>,
    streams: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl WorkloadApi {
    /// An agent that knows no workload yet, at a path that nothing is at.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn start(socket: &Path) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket)?
        };
        // The proxy runs as a user of its own.
        fs::set_permissions(socket, fs::Permissions::from_mode(0o777))?;
        let (answer, answers) = watch::channel(None);
        let streams = Arc::new(AtomicUsize::new(0));
        let agent = Agent { answers, streams: Arc::clone(&streams) };
        let thread = std::thread::spawn(move || runtime.block_on(serve(listener, agent)));
        Ok(Self { answer: Some(answer), streams, thread: Some(thread), socket: socket.to_owned() })
    }

    /// From now on every workload gets this, and those that listen get it at once.
    pub fn say(&self, answer: Answer) {
        if let Some(sender) = &self.answer {
            sender.send_replace(Some(answer));
        }
    }

    /// How often a stream was asked for.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        // Without a sender the agent's loop ends, and the runtime with all its streams.
        self.answer = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            println!("the agent has panicked");
        }
        // The next agent binds it anew.
        let _ = fs::remove_file(&self.socket);
    }
}

#[derive(Clone)]
struct Agent {
    answers: watch::Receiver<Option<Answer>>,
    streams: Arc<AtomicUsize>,
}

async fn serve(listener: UnixListener, agent: Agent) {
    let mut life = agent.answers.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = async { while life.changed().await.is_ok() {} } => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let agent = agent.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let agent = agent.clone();
            async move {
                let mut grpc = Grpc::new(ProstCodec::<Answer, X509SvidRequest>::default());
                let known = request.uri().path() == "/SpiffeWorkloadAPI/FetchX509SVID";
                let agent = Fetch { agent, known };
                Ok::<_, std::convert::Infallible>(grpc.server_streaming(agent, request).await)
            }
        });
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

/// One call of FetchX509SVID.
struct Fetch {
    agent: Agent,
    known: bool,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

impl ServerStreamingService<X509SvidRequest> for Fetch {
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<X509SvidRequest>) -> Self::Future {
        std::future::ready(self.answer(&request))
    }
}

impl Fetch {
    fn answer(&self, request: &Request<X509SvidRequest>) -> Result<Response<Answers>, Status> {
        if !self.known {
            return Err(Status::unimplemented("no such method"));
        }
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        self.agent.streams.fetch_add(1, Ordering::Relaxed);
        if self.agent.answers.borrow().is_none() {
            return Err(Status::permission_denied("no identity issued"));
        }
        let stream = Known(WatchStream::new(self.agent.answers.clone()));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The answers, without the time before the first.
struct Known(WatchStream<Option<Answer>>);

impl Stream for Known {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.0).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Some(answer)) => return Poll::Ready(Some(Ok(answer))),
                Some(None) => {}
            }
        }
    }
}
