//! The relay between two plaintext legs.

use std::time::Instant;

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn pair() -> (Leg, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Leg::new(listener.accept().await.unwrap().0), far)
}

struct Bench {
    ended: Ended,
    up: u64,
    down: u64,
}

/// Runs a relay between two sockets while `apps` plays both apps.
async fn run<F: Future<Output = ()>>(
    half_close: Duration,
    stopped: impl Future<Output = CloseReason>,
    apps: impl FnOnce(TcpStream, TcpStream) -> F,
) -> Bench {
    let (mut client, client_app) = pair().await;
    let (mut server, server_app) = pair().await;
    let (up, down) = (Cell::new(0), Cell::new(0));
    let relay = async {
        let limits = Limits { up: &up, down: &down, half_close };
        let (buffers, pipes) = (Buffers::new(), Pipes::new());
        let own = (&buffers, &pipes);
        let ended = plain(&mut client, &mut server, limits, own, stopped).await;
        drop((client, server));
        ended
    };
    let (ended, ()) = tokio::join!(relay, apps(client_app, server_app));
    Bench { ended, up: up.get(), down: down.get() }
}

async fn until_reset(stream: &TcpStream) {
    let reset = async {
        while stream.take_error().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), reset).await.unwrap();
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn each_direction_ends_on_its_own_and_every_byte_is_counted() {
    let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
        client.write_all(&[1; 100_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut request = Vec::new();
        server.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, [1; 100_000]);
        server.write_all(&[2; 7]).await.unwrap();
        drop(server);
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).await.unwrap();
        assert_eq!(reply, [2; 7]);
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::Closed);
    assert_eq!((bench.up, bench.down), (100_000, 7));
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let bench = run(HOUR, std::future::pending(), |mut client, server| async move {
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let e = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PeerReset);
}

#[tokio::test]
async fn an_answer_that_came_before_a_reset_is_passed_on() {
    let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
        // The server answers early and closes with the request unread: a reset
        // follows its answer while the client still sends.
        server.write_all(b"413").await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        // Its end may show as an error of this write as well.
        let _ = client.write_all(&[0; 100_000]).await;
        let mut answer = [0; 3];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"413");
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PeerReset);
    assert_eq!(bench.down, 3);
}

/// A write meets the reset and takes the socket's error with it; what a read finds then is 0, and
/// no end of the stream.
#[tokio::test]
async fn a_reset_that_a_write_meets_first_is_no_end_of_the_stream() {
    let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
        server.write_all(b"a part").await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        // Nothing has been waited for: the relay finds the reset and these bytes at once.
        client.write_all(b"more to say").await.unwrap();
        let mut came = Vec::new();
        let e = client.read_to_end(&mut came).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(came, b"a part");
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PeerReset);
    assert_eq!(bench.down, 6);
}

#[tokio::test]
async fn a_reset_of_a_half_closed_peer_is_seen() {
    let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        // The server says nothing, so only the blind spot's question finds out.
        until_reset(&server).await;
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PeerReset);
}

#[tokio::test]
async fn a_reset_behind_a_writer_that_waits_is_seen() {
    let bench = run(HOUR, std::future::pending(), |mut client, server| async move {
        // The server reads nothing, so the client's bytes fill every buffer.
        let full = async { while client.write_all(&[0; 65536]).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(500), full).await.is_err());
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        until_reset(&server).await;
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PeerReset);
}

#[tokio::test]
async fn a_silent_half_closed_connection_is_reset_and_an_open_one_is_not() {
    let bench = run(
        Duration::from_millis(200),
        std::future::pending(),
        |mut client, mut server| async move {
            // Open both ways and silent for longer than the timeout: stays.
            tokio::time::sleep(Duration::from_millis(600)).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut [0; 1]).await.unwrap();
            client.shutdown().await.unwrap();
            let e = client.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
        },
    )
    .await;
    assert_eq!(bench.ended.reason, CloseReason::HalfCloseTimeout);
}

#[tokio::test]
async fn a_changed_policy_says_fin_and_then_resets_who_does_not_answer() {
    let stopped = std::future::ready(CloseReason::PolicyChanged);
    let bench = run(HOUR, stopped, |mut client, mut server| async move {
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        // The client never closes, so a write after the second finds a reset, and none before it.
        let fin = Instant::now();
        let e = loop {
            if let Err(e) = client.write_all(&[0; 1]).await {
                break e;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let after = fin.elapsed();
        // What is measured begins later than the goodbye does, on a busy machine by some time.
        assert!((GOODBYE / 2..GOODBYE * 5).contains(&after), "{after:?}");
        assert!(matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
    })
    .await;
    assert_eq!(bench.ended.reason, CloseReason::PolicyChanged);
}
