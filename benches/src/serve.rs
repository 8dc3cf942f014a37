//! The application in the server's pod: a sink, a source, an echo and an HTTP server.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::error::{Context, Error};
use crate::wire::{self, BULK_CHUNK, Requests};

/// Threads that serve; one more accepts.
const WORKERS: usize = 2;

/// Serves on all ports of an address for as long as the process lives.
///
/// # Errors
/// A port is taken, or the kernel gives no thread.
pub(crate) fn run(address: IpAddr) -> Result<(), Error> {
    let workers = (0..WORKERS).map(|_| worker()).collect::<Result<Vec<_>, _>>()?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for port in wire::PORTS {
            let on = SocketAddr::new(address, port);
            listeners.push((port, listen(on).context(format!("listening on {on}"))?));
        }
        let mut accepting = tokio::task::JoinSet::new();
        for (port, listener) in listeners {
            accepting.spawn(accept(port, listener, workers.clone()));
        }
        match accepting.join_next().await {
            Some(Ok(Err(error))) => Err(error).context("accepting"),
            _ => Ok(()),
        }
    })
}

fn listen(on: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(on)?;
    socket.listen(16_384)
}

type Accepted = (u16, std::net::TcpStream);

/// Hands connections to the workers in turn: the same spread in every run, which the kernel's
/// SO_REUSEPORT hash would not give.
async fn accept(
    port: u16,
    listener: tokio::net::TcpListener,
    workers: Vec<UnboundedSender<Accepted>>,
) -> io::Result<()> {
    for worker in workers.iter().cycle() {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        if worker.send((port, stream.into_std()?)).is_err() {
            break;
        }
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

fn worker() -> Result<UnboundedSender<Accepted>, Error> {
    let (sender, mut accepted) = unbounded_channel::<Accepted>();
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                while let Some((port, stream)) = accepted.recv().await {
                    tokio::spawn(async move {
                        // How a client ends is the client's affair: it counts its own failures.
                        let _ = serve(port, stream).await;
                    });
                }
            });
        })
        .context("a thread")?;
    Ok(sender)
}

async fn serve(port: u16, stream: std::net::TcpStream) -> io::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    match port {
        wire::SINK => sink(stream).await,
        wire::SOURCE => source(stream).await,
        wire::ECHO => echo(stream).await,
        _ => http(stream).await,
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_CHUNK];
    let mut count = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.write_all(&count.to_be_bytes()).await,
            read => count = count.saturating_add(read as u64),
        }
    }
}

async fn source(stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let buffer = vec![0x5a; BULK_CHUNK];
    let mut end = [0; 16];
    let ended = reader.read(&mut end);
    tokio::pin!(ended);
    loop {
        // Looked at between two chunks, never in one: a chunk that was begun is sent whole.
        tokio::select! {
            biased;
            _ = &mut ended => return writer.shutdown().await,
            () = std::future::ready(()) => {}
        }
        writer.write_all(&buffer).await?;
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return stream.shutdown().await;
        };
        stream.write_all(bytes).await?;
    }
}

async fn http(mut stream: TcpStream) -> io::Result<()> {
    // Small: thousands of idle connections are held open.
    let mut buffer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return stream.shutdown().await;
        }
        match wire::requests(&buffer) {
            Requests::Bad => {
                stream.write_all(wire::BAD_REQUEST).await?;
                return stream.shutdown().await;
            }
            Requests::Whole { count, bytes } => {
                buffer.drain(..bytes);
                match count {
                    0 => {}
                    1 => stream.write_all(wire::ANSWER).await?,
                    more => stream.write_all(&wire::ANSWER.repeat(more)).await?,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(port: u16) -> (TcpStream, tokio::task::JoinHandle<io::Result<()>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = listener.accept().await.unwrap().0.into_std().unwrap();
        (client, tokio::spawn(serve(port, stream)))
    }

    #[tokio::test]
    async fn the_sink_counts() {
        let (mut client, served) = pair(wire::SINK).await;
        client.write_all(&vec![1; 300_000]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.read_u64().await.unwrap(), 300_000);
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_source_stops_when_it_is_told() {
        let (mut client, served) = pair(wire::SOURCE).await;
        client.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_echo_echoes() {
        let (mut client, served) = pair(wire::ECHO).await;
        client.write_all(b"abc").await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"abc");
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn http_answers_each_request_and_refuses_nonsense() {
        let (mut client, served) = pair(wire::HTTP).await;
        let (head, tail) = wire::REQUEST.split_at(9);
        client.write_all(&[wire::REQUEST, wire::REQUEST, head].concat()).await.unwrap();
        let mut two = vec![0; wire::ANSWER.len() * 2];
        client.read_exact(&mut two).await.unwrap();
        assert_eq!(two, wire::ANSWER.repeat(2));
        client.write_all(tail).await.unwrap();
        client.read_exact(&mut two[..wire::ANSWER.len()]).await.unwrap();
        client.write_all(b"\0").await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, wire::BAD_REQUEST);
        served.await.unwrap().unwrap();
    }
}
