//! What each connection holds: a future or a struct that grows is noticed here.

use std::future::{Pending, pending};
use std::rc::Rc;

use pillion_proxy::lane::Lane;
use pillion_proxy::live::{Conn, Guard};
use pillion_proxy::net::Leg;
use pillion_proxy::relay::{self, Limits};
use pillion_proxy::telemetry::CloseReason;
use pillion_proxy::wire::Wire;
use pillion_proxy::{inbound, outbound};

/// The size of what a call gives, without the call.
macro_rules! size_of_output {
    ($name:ident: $($argument:ident),*) => {
        fn $name<$($argument,)* F: Future>(_: impl FnOnce($($argument),*) -> F) -> usize {
            size_of::<F>()
        }
    };
}
size_of_output!(of_three: A, B, C);
size_of_output!(of_four: A, B, C, D);

type Never = Pending<CloseReason>;

fn plain(
    client: &'static mut Leg,
    server: &'static mut Leg,
    limits: Limits<'static>,
    own: (&'static Rc<pillion_proxy::buffers::Buffers>, &'static Rc<relay::Pipes>),
) -> impl Future {
    let stopped: Never = pending();
    relay::plain(client, server, limits, own, stopped)
}

fn secure(app: &'static mut Leg, wire: &'static mut Wire, limits: Limits<'static>) -> impl Future {
    let stopped: Never = pending();
    relay::secure(app, wire, limits, stopped)
}

#[test]
fn a_connection_is_no_larger_than_it_was() {
    let serve_in = of_three::<&'static Rc<Lane>, Guard, Leg, _>(inbound::serve);
    let serve_out = of_three::<&'static Rc<Lane>, &'static Rc<Conn>, Leg, _>(outbound::serve);
    let sizes = [
        ("inbound::serve", serve_in, 320),
        ("outbound::serve", serve_out, 352),
        ("relay::plain", of_four(plain), 464),
        ("relay::secure", of_three(secure), 264),
        ("Wire", size_of::<Wire>(), 376),
        ("Conn", size_of::<Conn>(), 336),
        ("Leg", size_of::<Leg>(), 72),
    ];
    for (name, size, most) in sizes {
        println!("{name}: {size} bytes of at most {most}");
    }
    for (name, size, most) in sizes {
        assert!(size <= most, "{name} has grown to {size} bytes; {most} were enough");
    }
}
