//! A request and its answer: HTTP or an echo, in a closed loop, or one to a connection.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Kind;
use super::worker::{Task, connect};
use crate::wire;

/// The server's port for a kind of load.
pub(super) fn port(kind: Kind) -> u16 {
    match kind {
        Kind::BulkUp => wire::SINK,
        Kind::BulkDown => wire::SOURCE,
        Kind::Echo => wire::ECHO,
        Kind::Http | Kind::HttpOpen | Kind::Churn | Kind::Idle => wire::HTTP,
    }
}

/// A request and the one right answer to it.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    /// An echo of `size` bytes, or the HTTP request.
    pub(super) fn new(kind: Kind, size: usize) -> Self {
        if kind == Kind::Echo {
            let message: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
            return Self { request: message.clone(), answer: message };
        }
        Self { request: wire::REQUEST.to_vec(), answer: wire::ANSWER.to_vec() }
    }

    /// A buffer for the answer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        vec![0; self.answer.len()]
    }

    /// Sends the request and reads the answer.
    ///
    /// # Errors
    /// The connection ends, or another answer comes.
    pub(super) async fn once(&self, stream: &mut TcpStream, came: &mut [u8]) -> io::Result<()> {
        stream.write_all(&self.request).await?;
        stream.read_exact(came).await?;
        if came == self.answer { Ok(()) } else { Err(io::Error::other("another answer came")) }
    }
}

/// One exchange after another; a connection that fails is replaced.
pub(super) async fn closed_loop(
    to: SocketAddr,
    mut stream: TcpStream,
    exchange: Exchange,
    task: Task,
) {
    let mut came = exchange.buffer();
    while task.running() {
        let start = Instant::now();
        match exchange.once(&mut stream, &mut came).await {
            Ok(()) => task.done_since(start),
            Err(error) => {
                task.failed_pause("a request", &error).await;
                match connect(to).await {
                    Ok(fresh) => stream = fresh,
                    Err(error) => task.failed_pause("connecting again", &error).await,
                }
            }
        }
    }
}

/// Connect, one exchange, close; over and over.
pub(super) async fn churn(to: SocketAddr, task: Task) {
    let exchange = Exchange::new(Kind::Churn, 0);
    let mut came = exchange.buffer();
    while task.running() {
        let start = Instant::now();
        let served = async {
            let mut stream = connect(to).await?;
            exchange.once(&mut stream, &mut came).await
        };
        match served.await {
            Ok(()) => task.done_since(start),
            Err(error) => task.failed_pause("a connection", &error).await,
        }
    }
}
