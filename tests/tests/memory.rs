//! What an idle connection costs.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pillion_testbed::labels::metric;
use pillion_testbed::stream::pass;
use pillion_testbed::{Failure, Pair, Sidecar, let_pass, run};

const APP: u16 = 8080;
const CONNECTIONS: usize = 1_000;

/// What one idle connection may take of each sidecar's memory, in bytes: half as much again as was
/// measured with a debug build.
const CLIENT_LIMIT: u64 = 10 << 10;
const SERVER_LIMIT: u64 = 10 << 10;

fn open(pair: &Pair, count: usize) -> Result<Vec<(TcpStream, TcpStream)>, Failure> {
    let listener = pair.listen(pair.server.v4(), APP)?;
    let one = |_| {
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"a request")?;
        pass(&mut server, &mut client, b"and an answer")?;
        Ok((client, server))
    };
    (0..count).map(one).collect()
}

fn each(before: u64, sidecar: &mut Sidecar) -> Result<u64, Failure> {
    Ok(sidecar.process().resident()?.saturating_sub(before) / CONNECTIONS as u64)
}

#[test]
fn an_idle_connection_is_small() {
    run("memory", |bed| {
        let mut pair = Pair::new(bed)?;
        // What a process needs once is there before it is measured.
        drop(open(&pair, 20)?);
        pair.caller.wait_idle()?;
        pair.callee.wait_idle()?;
        let before = [pair.caller.process().resident()?, pair.callee.process().resident()?];
        let held = open(&pair, CONNECTIONS)?;
        let_pass(Duration::from_secs(1));
        let client = each(before[0], &mut pair.caller)?;
        let server = each(before[1], &mut pair.callee)?;
        println!("bytes an idle connection: {client} at the client, {server} at the server");
        assert!(client < CLIENT_LIMIT, "{client}");
        assert!(server < SERVER_LIMIT, "{server}");
        assert_eq!(pair.caller.metric(metric::OPEN, &[])?, CONNECTIONS as f64);

        // A connection is two descriptors, and none is left behind.
        let open = pair.caller.process().descriptors()?;
        assert!(open >= 2 * CONNECTIONS, "{open}");
        let to = SocketAddr::new(pair.server.v4(), APP);
        assert_eq!(held.iter().filter(|(c, _)| c.peer_addr().ok() == Some(to)).count(), held.len());
        drop(held);
        pair.caller.wait_idle()?;
        pair.callee.wait_idle()
    });
}
