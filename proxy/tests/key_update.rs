//! A peer that changes its key while a connection is half-closed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/ends.rs"]
mod ends;

use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ends::{generations, leg, pair, runtime, shake_hands};
use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_proxy::buffers::Buffers;
use pillion_proxy::config::TlsEngine;
use pillion_proxy::relay::{self, Limits};
use pillion_proxy::telemetry::CloseReason;
use pillion_proxy::tunnel::Role;
use pillion_proxy::wire::Wire;
use rustls::{ClientConnection, StreamOwned};

/// Our stream has ended, so there is nothing to answer with, and no need to: what the
/// peer still has to say arrives, and the connection ends well.
#[test]
fn a_key_update_after_our_end_does_no_harm() {
    for engine in [TlsEngine::Records, TlsEngine::Rustls] {
        let ((near, app), (one, other)) = (pair(), pair());
        let [client, server] = generations();
        let (arrived, next) = mpsc::channel();
        let peer = thread::spawn(move || {
            let config = client.client_config(Offer::Single);
            let tls = ClientConnection::new(config, TlsGeneration::server_name()).unwrap();
            let mut stream = StreamOwned::new(tls, other);
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the app has ended its stream");
            for round in 0..3 {
                stream.conn.refresh_traffic_keys().unwrap();
                stream.write_all(&[round; 1000]).unwrap();
                // One by one, so that each is dealt with by itself.
                next.recv().unwrap();
            }
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        });
        app.shutdown(std::net::Shutdown::Write).unwrap();
        let app = thread::spawn(move || {
            let (mut app, mut heard) = (app, [0; 1000]);
            for round in 0..3 {
                app.read_exact(&mut heard).unwrap();
                assert_eq!(heard, [round; 1000]);
                arrived.send(()).unwrap();
            }
            app.read(&mut heard).unwrap()
        });

        let (runtime, buffers) = (runtime(), Buffers::new());
        let _inside = runtime.enter();
        let (mut near, mut wire) = (leg(near), leg(one));
        let (up, down) = (Cell::new(0), Cell::new(0));
        let ended = runtime.block_on(async {
            let made = shake_hands(Role::Server, &mut wire, false, &server, engine).await;
            let mut wire = Wire::new(wire, made, Role::Server, &buffers);
            let limits = Limits { up: &up, down: &down, half_close: Duration::from_secs(60) };
            relay::secure(&mut near, &mut wire, limits, std::future::pending()).await
        });
        assert_eq!(ended.reason, CloseReason::Closed, "{engine:?}: {:?}", ended.detail);
        drop(near);
        assert_eq!(app.join().unwrap(), 0, "and the end");
        peer.join().unwrap();
    }
}
