//! Every way in which either app can end a connection, at every moment: what the other app sees
//! through two sidecars and a tunnel is what it sees over a plain connection.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pillion_testbed::labels::{metric, reason};
use pillion_testbed::stream::{End, pass, read_to_end, reset};
use pillion_testbed::{Failure, Pair, Pod, accept, run, wait_until};

const APP: u16 = 8080;

/// What one of the two apps does. `A` begins to end the connection; the other is `B`.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// `A` sends, and `B` receives.
    Tell,
    /// `B` sends, and `A` receives.
    Answer,
    /// `B` sends what `A` gets and does not read.
    Unread,
    /// `A` has no more to send.
    Finish,
    /// `B` has no more to send.
    FinishToo,
    /// `A` closes.
    Close,
    /// `A` breaks off.
    Reset,
    /// `B` reads to the end, and it is noted what it sees.
    Sees,
    /// `A` does.
    SeesToo,
    /// `B` sends until it cannot, and it is noted why.
    Fails,
}

use Act::{Answer, Close, Fails, Finish, FinishToo, Reset, Sees, SeesToo, Tell, Unread};

const STORIES: &[&[Act]] = &[
    &[Close, Sees],
    &[Reset, Sees],
    &[Tell, Close, Sees],
    &[Tell, Reset, Sees],
    &[Tell, Answer, Close, Sees],
    &[Tell, Answer, Reset, Sees],
    &[Answer, Close, Sees],
    &[Tell, Unread, Close, Sees],
    &[Finish, Sees, Answer, FinishToo, SeesToo],
    &[Tell, Finish, Sees, Answer, Answer, FinishToo, SeesToo],
    &[Tell, Finish, Sees, Answer, Reset, Fails],
    &[Tell, Finish, Sees, Close, Fails],
    &[Tell, FinishToo, SeesToo, Tell, Reset, Sees],
    &[Tell, FinishToo, SeesToo, Tell, Close, Sees],
    &[FinishToo, Finish, Sees, SeesToo],
];

/// Sends until that fails, and says how.
fn send_until_it_fails(stream: &mut TcpStream) -> Result<io::ErrorKind, Failure> {
    wait_until("a failure to send", Duration::from_secs(10), || {
        Ok(stream.write_all(b"more").err().map(|error| error.kind()))
    })
}

/// Plays a story on a connection and returns what was noted.
fn play(story: &[Act], a: TcpStream, b: TcpStream) -> Result<Vec<String>, Failure> {
    let (mut a, mut b) = (Some(a), b);
    let mut noted = Vec::new();
    for act in story {
        let gone = || Failure::Unexpected(format!("{story:?}: A is gone before {act:?}"));
        match act {
            Close => drop(a.take()),
            Reset => reset(a.take().ok_or_else(gone)?)?,
            Tell => pass(a.as_mut().ok_or_else(gone)?, &mut b, b"told")?,
            Answer => pass(&mut b, a.as_mut().ok_or_else(gone)?, b"answered")?,
            Unread => {
                b.write_all(b"unread")?;
                let a = a.as_ref().ok_or_else(gone)?;
                wait_until("what is not read", Duration::from_secs(10), || {
                    Ok((a.peek(&mut [0; 6])? == 6).then_some(()))
                })?;
            }
            Finish => a.as_ref().ok_or_else(gone)?.shutdown(Shutdown::Write)?,
            FinishToo => b.shutdown(Shutdown::Write)?,
            Sees => noted.push(format!("B sees {:?}", read_to_end(&mut b)?)),
            SeesToo => {
                noted.push(format!("A sees {:?}", read_to_end(a.as_mut().ok_or_else(gone)?)?));
            }
            Fails => {
                let kind = send_until_it_fails(&mut b)?;
                let ends = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                noted.push(format!("B fails as it should: {}", ends.contains(&kind)));
            }
        }
    }
    Ok(noted)
}

/// Plays a story with each app as `A`, on a new connection each.
fn both_ways(
    story: &[Act],
    client: &Pod,
    listener: &TcpListener,
) -> Result<[Vec<String>; 2], Failure> {
    let open = || -> Result<_, Failure> {
        let calling = client.connect(listener.local_addr()?)?;
        Ok((calling, accept(listener)?))
    };
    let (calling, called) = open()?;
    let by_client = play(story, calling, called)?;
    let (calling, called) = open()?;
    Ok([by_client, play(story, called, calling)?])
}

#[test]
fn every_end_is_what_it_is_without_a_proxy() {
    run("ends", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let directly: Vec<_> = STORIES
            .iter()
            .map(|story| both_ways(story, &client, &listener))
            .collect::<Result<_, _>>()?;
        let pair = Pair::mesh(bed, client, server, &[("PILLION_WORKERS", "1")])?;
        // The second time there are tunnels to be used again.
        for round in 1..=3 {
            for (story, direct) in STORIES.iter().zip(&directly) {
                let meshed = both_ways(story, &pair.client, &listener)
                    .map_err(|failure| Failure::Unexpected(format!("{story:?}: {failure}")))?;
                assert_eq!(
                    &meshed, direct,
                    "round {round}, by the client and the server: {story:?}"
                );
            }
        }
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
            let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
            let expected = |why: &String| why == reason::CLOSED || why == reason::PEER_RESET;
            let others =
                sidecar.log_lines()?.into_iter().filter(|it| !expected(&it.reason().to_owned()));
            let others: Vec<_> = others.collect();
            assert!(reasons.keys().all(expected), "{reasons:?}: {others:?}");
        }
        let reused = pair.caller.metric(metric::STREAMS, &[("reused", "true")])?;
        println!("{reused} of the connections went over a tunnel that was there already");
        assert!(reused > 10.0, "{reused}");
        pair.exchange(&listener)
    });
}

/// A transfer that is cut in its middle, by either app, in either direction: what came is a part
/// of what was sent, and its end is not taken for the whole's.
#[test]
fn a_transfer_is_cut() {
    // More than all the buffers on the way take together, which are tens of MiB.
    const WHOLE: usize = 128 << 20;
    const PART: usize = 1 << 20;
    run("cut", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let sent: Vec<u8> = (0..=250).cycle().take(WHOLE).collect();
        for down in [false, true] {
            for by_reader in [false, true] {
                let (client, server) = pair.open(&listener)?;
                let (mut from, mut to) = if down { (server, client) } else { (client, server) };
                let what = format!("down {down}, by the reader {by_reader}");
                std::thread::scope(|scope| {
                    let sending = scope.spawn(|| {
                        let result = from.write_all(&sent);
                        if by_reader {
                            return result.err().map(|error| error.kind());
                        }
                        // Not at the end, as far as the other app can tell.
                        let _ = reset(from);
                        None
                    });
                    if by_reader {
                        let part = pillion_testbed::stream::read_exactly(&mut to, PART)?;
                        assert_eq!(part, sent[..PART], "{what}");
                        reset(to)?;
                    } else {
                        let (came, end) = read_to_end(&mut to)?;
                        assert_eq!(end, End::Reset, "{what}");
                        assert!(sent.starts_with(&came), "{what}: {} bytes", came.len());
                    }
                    let failed = sending.join().unwrap_or_default();
                    assert_eq!(failed.is_some(), by_reader, "{what}: {failed:?}");
                    Ok::<_, Failure>(())
                })?;
            }
        }
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
            sidecar.wait_metric(metric::CLOSED, &[("reason", reason::PEER_RESET)], 4.0)?;
        }
        pair.exchange(&listener)
    });
}
