//! Connections that are open while the rules are installed again.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::BACKENDS;
use crate::namespace::Namespace;

/// Sends until told to stop, then FIN; gives what it sent.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> usize {
    let chunk = [7; 16 << 10];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk).unwrap();
        sent += chunk.len();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    sent
}

/// Reads to the FIN, with a word for each read; gives what it got.
fn receive(mut stream: TcpStream, progress: Sender<()>) -> usize {
    let mut buffer = [0; 64 << 10];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return received,
            Ok(count) => {
                received += count;
                // The test may have stopped to listen: it has seen enough.
                let _ended = progress.send(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("after {received} bytes: {error}"),
        }
    }
}

/// Requires fresh progress, after all that has been reported so far.
fn moves_on(progress: &Receiver<()>) {
    while progress.try_recv().is_ok() {}
    for _ in 0..16 {
        progress.recv_timeout(Duration::from_secs(10)).expect("the transfer stands still");
    }
}

/// Ten re-runs while `client` sends to `server`; every other run has other rules.
fn survives(pod: &Namespace, backend: &str, client: TcpStream, server: TcpStream) {
    let stop = AtomicBool::new(false);
    let (word, progress) = channel();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(client, &stop));
        let receiving = scope.spawn(|| receive(server, word));
        for run in 0..10 {
            moves_on(&progress);
            let other = ["--outbound-exclude-ports=25", "--inbound-exclude-ports=22"];
            let arguments = if run % 2 == 0 { &other[..] } else { &[] };
            pod.init(&[&["--backend", backend], arguments].concat()).exits(0);
            moves_on(&progress);
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(receiving.join().unwrap(), sending.join().unwrap());
    });
}

#[test]
fn what_the_app_dialled_survives_ten_re_runs() {
    for backend in BACKENDS {
        for (listen, dial) in [("127.0.0.1:15001", "10.99.0.9:80"), ("[::1]:15001", "[fd99::9]:80")]
        {
            let pod = Namespace::with_uplink();
            pod.init(&["--backend", backend]).exits(0);
            let listener = pod.listen(listen);
            let client = pod.dial(dial);
            let (server, _) = listener.accept().unwrap();
            survives(&pod, backend, client, server);
        }
    }
}

#[test]
fn what_a_peer_dialled_survives_ten_re_runs() {
    for backend in BACKENDS {
        for (listen, dial) in [("0.0.0.0:15006", "10.98.0.1:80"), ("[::]:15006", "[fd98::1]:80")] {
            let (pod, peer) = Namespace::joined();
            pod.init(&["--backend", backend]).exits(0);
            let listener = pod.listen(listen);
            let client = peer.dial(dial);
            let (server, _) = listener.accept().unwrap();
            survives(&pod, backend, client, server);
        }
    }
}
